# COPY inside the sandbox, as its root. Everything comes in variables; nothing is pasted into this text.
# archive: a tar, gzipped when gzip=1. source: a path or pattern in it. target: an absolute path.
# owner: user:group or empty. mode: octal or empty.
set -eu
work=$(dirname "$archive")
tree=$work/tree
mkdir "$tree"
if [ "$gzip" = 1 ]; then tar -xzo -f "$archive" -C "$tree"; else tar -xo -f "$archive" -C "$tree"; fi
rm -f "$archive"
if [ "$(id -u)" != 0 ]; then owner=; fi
if [ -n "$owner" ]; then chown -hR "$owner" "$tree"; fi
if [ -n "$mode" ]; then chmod -R "$mode" "$tree"; fi

make() {
    if [ ! -d "$1" ]; then
        make "$(dirname "$1")"
        mkdir "$1"
        if [ -n "$owner" ]; then chown "$owner" "$1"; fi
    fi
}

cd "$tree"
IFS=
set -- $source
into=no
case "$target" in */ | */.) into=yes ;; esac
if [ $# -gt 1 ]; then into=yes; fi
for entry do
    if [ ! -e "$entry" ] && [ ! -L "$entry" ]; then
        echo "there is no $entry among the files" >&2
        exit 1
    fi
    if [ -d "$entry" ] && [ ! -L "$entry" ]; then
        make "$target"
        for child in "$entry"/* "$entry"/.[!.]* "$entry"/..?*; do
            if [ -e "$child" ] || [ -L "$child" ]; then cp -a "$child" "$target/"; fi
        done
    elif [ "$into" = yes ] || [ -d "$target" ]; then
        make "$target"
        cp -a "$entry" "$target/"
    else
        make "$(dirname "$target")"
        cp -a "$entry" "$target"
    fi
done
rm -rf "$work"
