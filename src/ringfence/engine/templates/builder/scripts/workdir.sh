# WORKDIR inside the sandbox, as its root: create the directory, and what is missing above it, as the user's.
set -eu
make() {
    if [ ! -d "$1" ]; then
        make "$(dirname "$1")"
        mkdir "$1"
        if [ "$(id -u)" = 0 ]; then chown "$owner" "$1"; fi
    fi
}
make "$path"
