# Sourced by scripts that need programs: `installed PROGRAM PACKAGE...` installs the packages by apt where the program is
# missing.
installed() {
    local program=$1
    shift
    command -v "$program" >/dev/null && return
    local apt=(env DEBIAN_FRONTEND=noninteractive apt-get)
    if [ "$(id -u)" -ne 0 ]; then apt=(sudo "${apt[@]}"); fi
    echo "installing $*"
    "${apt[@]}" install -y --no-install-recommends "$@" >/dev/null 2>&1 && return
    "${apt[@]}" update >/dev/null
    "${apt[@]}" install -y --no-install-recommends "$@" >/dev/null
}
