# USER inside the sandbox, as its root: create the user when it is missing. name: of the user. sudo: 1 to make it
# an administrator.
set -eu
if ! grep -q "^$name:" /etc/passwd; then
    id=1000
    while grep -q "^[^:]*:[^:]*:$id:" /etc/passwd || grep -q "^[^:]*:[^:]*:$id:" /etc/group; do id=$((id + 1)); done
    shell=/bin/sh
    if [ -x /bin/bash ]; then shell=/bin/bash; fi
    echo "$name:x:$id:$id::/home/$name:$shell" >>/etc/passwd
    if ! grep -q "^$name:" /etc/group; then echo "$name:x:$id:" >>/etc/group; fi
    if [ -f /etc/shadow ]; then echo "$name::19000:0:99999:7:::" >>/etc/shadow; fi
    mkdir -p "/home/$name"
    if [ -d /etc/skel ]; then cp -R /etc/skel/. "/home/$name/"; fi
    if [ "$(id -u)" = 0 ]; then chown -R "$id:$id" "/home/$name"; fi
fi
if [ "$sudo" = 1 ] && grep -q "^sudo:" /etc/group && ! grep "^sudo:" /etc/group | grep -q "[:,]$name\(,\|\$\)"; then
    sed -e "/^sudo:.*:\$/s/\$/$name/" -e "/^sudo:.*[^:]\$/{/[:,]$name\$/!s/\$/,$name/}" /etc/group >/etc/group.new
    cat /etc/group.new >/etc/group
    rm /etc/group.new
fi
