#!/bin/sh
# First thing in a guest: bind the folders of the disk image over their own paths, then run Python.
#   guest.sh LOG BOOT FOLDER... -- COMMAND...
set -eu
exec >"$1" 2>&1
# The kernel's own /boot, for its config.
mount --bind "$2" /boot
shift 2

modprobe -a virtio_blk ext4
tries=0
until [ -b /dev/vda ]; do
	tries=$((tries + 1))
	[ $tries -lt 60 ] || { echo "the disk image did not appear as /dev/vda"; exit 1; }
	sleep 1
done
mkdir /run/image
mount -t ext4 -o ro /dev/vda /run/image
while [ "$1" != -- ]; do
	mount --bind "/run/image$1" "$1"
	shift
done
shift
exec "$@"
