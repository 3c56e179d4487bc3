#!/bin/bash
# What a distribution adds to Ignition's dracut module: drivers, the root, the tools that it calls, a base config, and
# what happens when it fails.

check() {
    return 255
}

depends() {
    echo systemd-initrd udev-rules ignition
}

installkernel() {
    hostonly='' instmods virtio_pci virtio_blk virtio_console virtio_rng virtio_scsi sd_mod nvme qemu_fw_cfg button evdev \
        ext4 crc32c xfs vfat nls_ascii nls_cp437 nls_iso8859-1 dm_mod
}

install() {
    # Ignition is linked against SELinux's file contexts and fails without these two.
    inst_script "$moddir/setfiles" /usr/sbin/setfiles
    inst_simple "$moddir/10-core.ign" /usr/lib/ignition/base.d/10-core.ign

    inst_multiple sh bash cat cp grep ln ls mkdir mktemp mv rm sed mount umount modprobe setsid dmesg sleep blkid \
        groupadd groupdel useradd userdel usermod sgdisk mkswap wipefs \
        mke2fs mkfs.ext4 mkfs.xfs mkfs.fat mkfs.vfat fsck fsck.ext4 e2fsck /etc/mke2fs.conf \
        journalctl systemctl udevadm "$systemdutildir/systemd-sysroot-fstab-check"
    inst_rules 50-udev-default.rules 60-block.rules 60-persistent-storage.rules 80-drivers.rules 99-systemd.rules \
        60-qemu-guest-agent.rules
    inst_multiple "$systemdsystemunitdir/systemd-fsck-root.service" "$systemdsystemunitdir/systemd-fsck@.service"

    inst_script "$moddir/guest-failed" /usr/bin/guest-failed
    inst_simple "$moddir/emergency.service" "$systemdsystemunitdir/emergency.service"
    inst_script "$moddir/guest-journal" /usr/bin/guest-journal
    inst_simple "$moddir/guest-journal.service" "$systemdsystemunitdir/guest-journal.service"
    $SYSTEMCTL -q --root "$initdir" add-wants emergency.target guest-journal.service
    echo 'root::0:0::/root:/bin/sh' >>"$initdir/etc/passwd"
    mkdir -p "$initdir/root" "$initdir/sysroot" "$initdir/tmp"
    grep -v '^PRETTY_NAME' "$dracutsysrootdir/etc/os-release" >"$initdir/usr/lib/initrd-release"
    echo 'PRETTY_NAME="Full guest of kiln (initramfs)"' >>"$initdir/usr/lib/initrd-release"
    ln -sf initrd-release "$initdir/usr/lib/os-release"
    ln -sf ../usr/lib/initrd-release "$initdir/etc/initrd-release"
    ln -sf ../usr/lib/initrd-release "$initdir/etc/os-release"
}
