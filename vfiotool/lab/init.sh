#!/bin/busybox sh
# PID 1 of a lab guest, in the initramfs: mounts the host's root file system copy on write as the guest's root,
# then executes the agent as PID 1. A step that fails ends PID 1, and with it the guest.
set -e
/bin/busybox mount -t proc proc /proc
read -r BOOTED _ < /proc/uptime
/bin/busybox --install -s /bin
export PATH=/bin BOOTED
. /lab.env # MODULES RELEASE MODULES_ROOT PYTHON AGENT FILES
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev

for module in $MODULES; do insmod "/modules/$module"; done
# A device behind an IOMMU whose driver was just loaded is probed a moment later.
for _ in $(seq 1000); do
    set -- /sys/bus/virtio/drivers/9pnet_virtio/virtio*
    [ ! -e "$1" ] || break
    usleep 10000
done
# Kernels up to 5.15 allocate the whole message size twice for each request: larger is slower.
mount -t 9p -o ro,trans=virtio,version=9p2000.L,cache=loose,msize=131072 root /host
mount -t tmpfs -o mode=755 tmpfs /changes
mkdir /changes/upper /changes/work
mount -t overlay -o lowerdir=/host,upperdir=/changes/upper,workdir=/changes/work overlay /root
if [ -n "$FILES" ]; then # keep modes, set root as owner; leave existing directories unchanged
    (cd "/host$FILES" && find . ! -type d) | while IFS= read -r file; do
        mkdir -p "/root/$(dirname "$file")"
        rm -f "/root/$file"
        cp -dp "/host$FILES/$file" "/root/$file"
        chown -h 0:0 "/root/$file"
    done
fi

if [ "$MODULES_ROOT" != / ]; then
    mkdir -p "/root/lib/modules/$RELEASE"
    mount -o bind "/root$MODULES_ROOT/lib/modules/$RELEASE" "/root/lib/modules/$RELEASE"
fi
mount -t proc proc /root/proc
mount -t sysfs sysfs /root/sys
mount -t devtmpfs -o nosuid,mode=755 devtmpfs /root/dev
mkdir -p /root/dev/pts /root/dev/shm
ln -s /proc/self/fd /root/dev/fd # like an init system; shells and scripts need these four links
for stream in stdin:0 stdout:1 stderr:2; do ln -s "fd/${stream#*:}" "/root/dev/${stream%:*}"; done
mount -t devpts -o nosuid,noexec,gid=5,mode=620,ptmxmode=666 devpts /root/dev/pts
mount -t tmpfs -o nosuid,nodev tmpfs /root/dev/shm
mount -t tmpfs -o nosuid,nodev,mode=755 tmpfs /root/run
mkdir -m 1777 /root/run/lock
for pair in tracefs:kernel/tracing debugfs:kernel/debug configfs:kernel/config cgroup2:fs/cgroup; do
    [ ! -d "/root/sys/${pair#*:}" ] || mount -t "${pair%%:*}" "${pair%%:*}" "/root/sys/${pair#*:}"
done
hostname vfiotool-lab
ifconfig lo up
umount /dev
umount /sys

read -r ROOTED _ < /proc/uptime
export ROOTED PYTHON AGENT
umount /proc
# Drivers are loaded while Python starts; the agent waits for COLDPLUG.
# shellcheck disable=SC2016 # the second shell expands the variables
exec switch_root /root /bin/sh -c '
    export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
    for udevd in /usr/lib/systemd/systemd-udevd /lib/systemd/systemd-udevd; do
        [ ! -x "$udevd" ] || break
    done
    if [ -x "$udevd" ]; then
        { "$udevd" --daemon && udevadm trigger --action=add --subsystem-match=pci &&
            udevadm settle --timeout=60; } </dev/null &
    else
        modprobe -abq $(cat /sys/bus/pci/devices/*/modalias) </dev/null &
    fi
    export COLDPLUG=$!
    exec "$PYTHON" -I -S -c "$AGENT"
'
