# Makes the root of a container and becomes its first process. It runs in new namespaces for mounts, processes, host
# name and IPC.
#
#   DIRECTORY NAME PRIVILEGED READ_ONLY COUNT (SOURCE TARGET MODE){COUNT} COMMAND...
#
# The root is this machine's, with a layer in memory above it: what the container writes is its own, and ends with it.
# Source files are found below /.host until all is mounted; targets are resolved within the new root, where links such
# as /var/run must not lead out of it.
set -eu
directory=$1 name=$2 privileged=$3 read_only=$4 count=$5
shift 5

mount -t tmpfs -o mode=755 tmpfs "$directory/root"
mkdir "$directory/root/upper" "$directory/root/work" "$directory/root/merged"
mount -t overlay -o "lowerdir=/,upperdir=$directory/root/upper,workdir=$directory/root/work" overlay "$directory/root/merged"
cd "$directory/root/merged"
mkdir .host
pivot_root . .host
cd /

mount -t proc proc /proc
mount -t tmpfs -o mode=755 tmpfs /run
mount -t tmpfs -o mode=1777 tmpfs /tmp
if [ "$privileged" = true ]; then
    mount --rbind /.host/dev /dev
    mount -t sysfs sysfs /sys
else
    mount -t sysfs -o ro sysfs /sys
    mount -t tmpfs -o mode=755 tmpfs /dev
    for device in null zero full random urandom tty; do
        : >"/dev/$device"
        mount --bind "/.host/dev/$device" "/dev/$device"
    done
    mkdir /dev/pts /dev/shm
    mount -t devpts -o newinstance,ptmxmode=0666 devpts /dev/pts
    mount -t tmpfs -o mode=1777 tmpfs /dev/shm
    ln -s pts/ptmx /dev/ptmx
    ln -s /proc/self/fd /dev/fd
    ln -s /proc/self/fd/0 /dev/stdin
    ln -s /proc/self/fd/1 /dev/stdout
    ln -s /proc/self/fd/2 /dev/stderr
fi
[ -z "$name" ] || echo "$name" >/proc/sys/kernel/hostname
if [ "$privileged" != true ]; then
    # Not every kernel has all of them.
    for path in sys sysrq-trigger irq bus fs; do
        [ -e "/proc/$path" ] || continue
        mount --bind "/proc/$path" "/proc/$path"
        mount -o remount,bind,ro "/proc/$path"
    done
    for path in kcore keys timer_list; do
        [ -e "/proc/$path" ] || continue
        mount --bind /dev/null "/proc/$path"
    done
fi

while [ "$count" -gt 0 ]; do
    source=/.host$1 target=$2 mode=$3
    shift 3
    count=$((count - 1))
    if [ -d "$source" ]; then
        mkdir -p "$target"
    else
        mkdir -p "$(dirname "$target")"
        [ -e "$target" ] || : >"$target"
    fi
    mount --rbind "$source" "$target"
    case $mode in *private*) mount --make-rprivate "$target" ;; esac
    case $mode in *ro*) mount -o remount,bind,ro "$target" ;; esac
done

: >"/.host$directory/made"
umount -l /.host
rmdir /.host
if [ "$read_only" = true ]; then
    mount -o remount,bind,ro /run
    mount -o remount,bind,ro /tmp
    mount -o remount,ro /
fi
exec "$@"
