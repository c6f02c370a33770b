case "$*" in
*/* | .*) ;;
*) [ -f "$answers/$name${1:+ $*}" ] && say "$answers/$name${1:+ $*}" ;;
esac
echo 'error=1 error_msg="Command not registered"'
exit 255
