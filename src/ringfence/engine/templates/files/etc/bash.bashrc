# /etc/bash.bashrc: read by interactive shells that are not login shells.
case $- in
	*i*) PS1='\w \$ ' ;;
esac
