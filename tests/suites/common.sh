# What the scripts that run foreign suites share: a work folder, a mounted image, and what is true of it afterwards.
# Set $kiln first. $work: scratch, removed at the end; $mnt: where the filesystem is; $failed: 1 when something failed.
failed=0

suite_begin() {
	work=$(mktemp -d) mnt=$work/mnt
	mkdir "$mnt"
	trap suite_end EXIT
	trap 'exit 1' INT TERM
}

suite_end() {
	cd /
	! mountpoint -q "$mnt" || umount -l "$mnt"
	rm -rf "$work"
}

# image_mount SIZE [OPTIONS...]: a fresh filesystem, mounted at $mnt.
image_mount() {
	size=$1
	shift
	truncate -s "$size" "$work/image"
	"$kiln" format --force "$work/image" > /dev/null
	"$kiln" mount "$@" "$work/image" "$mnt"
	chmod 0777 "$mnt"
	! [ "$(stat -c %a "$work")" = 700 ] || chmod 0755 "$work"
}

# Unmount; the filesystem must be clean and whole, to us and, where $JUDGE names a command, to that.
image_check() {
	cd /
	umount "$mnt"
	"$kiln" check "$work/image" > "$work/check" || { cat "$work/check"; failed=1; }
	[ -z "${JUDGE:-}" ] || $JUDGE "$work/image" > "$work/judge" 2>&1 || { cat "$work/judge"; failed=1; }
}
