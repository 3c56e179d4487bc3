#!/bin/sh
# lvm2 for a kernel without device-mapper. All that is written to the volume group, and all that is
# read of it, is the real lvm's; it is only told not to talk to the kernel. A volume's node, which
# device-mapper would make, is a loop device over a file of the volume's size, and `lvs` is made to
# name it. Not run is what device-mapper itself does: that the node's bytes lie in the group.
set -eu
PATH=/usr/sbin:/usr/bin:/sbin:/bin LC_ALL=C
here=$(dirname "$(readlink -f "$0")")
nodes=$here/nodes
LVM_SYSTEM_DIR=$here LVM_SUPPRESS_FD_WARNINGS=1
export PATH LC_ALL LVM_SYSTEM_DIR LVM_SUPPRESS_FD_WARNINGS

# It ends with this script, as device-mapper's lvm2 does with kiln.
real() { command=$1; shift; setpriv --pdeathsig KILL lvm "$command" --driverloaded n "$@"; }
# UUID and size in bytes of all volumes, or of those that the arguments select.
volumes() { real lvs --noheadings --units b --nosuffix -o lv_uuid,lv_size "$@" 2>/dev/null; }

# Makes the nodes be as the volumes of the group are.
follow() {
    volumes | while read -r uuid size; do
        node=$nodes/$uuid
        if [ ! -e "$node" ]; then
            # What lay there before is for nobody to read.
            yes stale | head -c "$size" >"$node"
        elif [ "$(stat -c %s "$node")" != "$size" ]; then
            yes stale | head -c $((size - $(stat -c %s "$node"))) >>"$node"
            [ ! -e "$node.loop" ] || losetup -c "$(readlink "$node.loop")"
        fi
    done
}
activate() {
    volumes "$@" | while read -r uuid size; do
        node=$nodes/$uuid
        [ -e "$node.loop" ] || ln -s "$(losetup --find --show "$node")" "$node.loop"
    done
}
# A volume that somebody has open cannot be removed.
deactivate() {
    for uuid in "$@"; do
        node=$nodes/$uuid
        [ -e "$node.loop" ] || continue
        loop=$(readlink "$node.loop")
        if ! perl -MFcntl -e 'sysopen my $h, $ARGV[0], O_RDWR | O_EXCL or exit 1' "$loop"; then
            echo "  Logical volume $uuid in use." >&2
            exit 5
        fi
        losetup -d "$loop"
        rm -f "$node.loop"
    done
}

# Whoever called is killed when so many calls are done, if the test says so.
count() {
    [ -e "$here/kill-after" ] || return 0
    left=$(($(cat "$here/kill-after") - 1))
    echo "$left" >"$here/kill-after"
    [ "$left" != 0 ] || kill -KILL "$PPID"
}
trap count EXIT

verb=$1
shift
case $verb in
    version)
        lvm version 2>/dev/null
        echo '  Driver version:  0 (a stand-in)'
        ;;
    vgs) real vgs "$@" ;;
    lvs)
        text=$(real lvs "$@")
        for loop in "$nodes"/*.loop; do
            [ -e "$loop" ] || continue
            uuid=$(basename "$loop" .loop) name=$(readlink "$loop")
            row="/\"lv_uuid\":\"$uuid\"/"
            text=$(printf '%s\n' "$text" | sed \
                -e "$row s|\"lv_path\":\"[^\"]*\"|\"lv_path\":\"$loop\"|" \
                -e "$row s|\"lv_kernel_major\":\"-1\"|\"lv_kernel_major\":\"$((0x$(stat -c %t "$name")))\"|" \
                -e "$row s|\"lv_kernel_minor\":\"-1\"|\"lv_kernel_minor\":\"$((0x$(stat -c %T "$name")))\"|")
        done
        printf '%s\n' "$text"
        ;;
    lvcreate)
        # Without a node there is nothing to wipe; the name comes last but one.
        for word; do
            shift
            case $word in
                -ay) set -- "$@" -an ;;
                -Wy) set -- "$@" -Wn ;;
                -Zy) set -- "$@" -Zn ;;
                *) set -- "$@" "$word" ;;
            esac
        done
        real lvcreate "$@"
        follow
        before= name=
        for word; do
            [ "$before" != --name ] || name=$word
            before=$word
        done
        activate --select "lv_name=$name"
        ;;
    lvextend)
        real lvextend "$@"
        follow
        ;;
    lvchange)
        case $1 in
            -ay) shift && activate "$@" ;;
            *) real lvchange "$@" ;;
        esac
        ;;
    lvremove)
        uuids=
        for word; do case $word in lv_uuid=*) uuids=${word#lv_uuid=} ;; esac; done
        deactivate $uuids
        real lvremove "$@"
        for uuid in $uuids; do rm -f "$nodes/$uuid"; done
        ;;
    *)
        echo "the stand-in knows no $verb" >&2
        exit 3
        ;;
esac
