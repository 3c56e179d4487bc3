#!/bin/bash
# A network in the initramfs for those configs alone that ask for it: Ignition's first stage then leaves a flag, and this
# runs networkd between it and the stage that fetches. Dracut's own module of this name begins it at each boot.

check() {
    return 255
}

depends() {
    echo systemd
}

installkernel() {
    hostonly='' instmods virtio_net
}

install() {
    inst_multiple networkctl "$systemdutildir/systemd-networkd" "$systemdutildir/systemd-networkd-wait-online" \
        "$systemdsystemunitdir/systemd-networkd.service" "$systemdsystemunitdir/systemd-networkd.socket" \
        /usr/lib/systemd/network/50-guest.network
    inst_script "$moddir/guest-network" /usr/bin/guest-network
    inst_simple "$moddir/guest-network.service" "$systemdsystemunitdir/guest-network.service"
    $SYSTEMCTL -q --root "$initdir" add-requires ignition-fetch.service guest-network.service
}
