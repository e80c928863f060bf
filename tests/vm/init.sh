#!/bin/sh
# The first process of the machine that run.py boots: loads the modules, lays a writable overlay over the
# host's files, runs the command and reports its status. Lives with busybox in the initramfs.
export PATH=/bin:/sbin:/usr/bin:/usr/sbin

stop() {
  [ $# -eq 0 ] || echo "penstock vm: $*" > /dev/console
  poweroff -f
}

mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev

while read -r module; do
  insmod "/modules/$module" || stop "cannot load $module"
done < /modules/order

# Everything of the host is there, and whatever is written goes no further than the overlay.
plan=trans=virtio,version=9p2000.L,msize=512000
mount -t 9p -o "$plan,ro,cache=loose" root /lower || stop "cannot mount the host's files"
mount -t tmpfs tmpfs /upper
mkdir /upper/work /upper/files
mount -t overlay -o lowerdir=/lower,upperdir=/upper/files,workdir=/upper/work overlay /root ||
  stop "cannot lay an overlay"
mount -t tmpfs tmpfs /root/run
mkdir /root/run/penstock_vm /root/run/lock
mount -t 9p -o "$plan" machine /root/run/penstock_vm || stop "cannot mount the machine's folder"
machine=/root/run/penstock_vm

# Only these folders are written through to the host.
number=0
while read -r folder; do
  mkdir -p "/root$folder"
  mount -t 9p -o "$plan" "share$number" "/root$folder" || stop "cannot mount $folder"
  number=$((number + 1))
done < "$machine/shares"

for folder in proc sys dev; do
  mount -o move "/$folder" "/root/$folder"
done
mkdir -p /root/dev/shm /root/dev/pts
mount -t tmpfs -o mode=1777 tmpfs /root/dev/shm
mount -t devpts devpts /root/dev/pts
ln -s /proc/self/fd /root/dev/fd
hostname vm
ip link set lo up
ulimit -n 1048576

exec 3> /root/dev/ttyS1
stty -F /root/dev/ttyS1 raw -echo
chroot /root setsid /bin/sh /run/penstock_vm/command < /root/dev/null >&3 2>&3
echo $? > "$machine/status"
# What the command left running must not hold the machine, nor the last lines of output.
kill -9 -1
exec 3>&-
umount -a -r 2> /dev/null
stop
