# bash completion for kiln
_kiln() {
	local cur=${COMP_WORDS[COMP_CWORD]} cmd=${COMP_WORDS[1]}
	local commands="format show-super list list-journal ls stat cat get tar usage check mount status sync debug put mkdir rm mv ln touch chmod chown setfattr set-option set-passphrase remove-passphrase quota"
	local common="--passphrase-file --passphrase-fd --degraded --very-degraded --force --memory --buffered --verbose --help"

	if [ "$COMP_CWORD" = 1 ]; then
		COMPREPLY=($(compgen -W "$commands --help --version" -- "$cur"))
		return
	fi
	[ "$cmd" = format ] && common=
	if [[ $cur == -* ]]; then
		# The options as the command itself tells them.
		COMPREPLY=($(compgen -W "$common $(kiln "$cmd" --help 2>/dev/null | grep -oE -- '(^|[ ,])--?[a-zA-Z][a-z0-9-]*' | tr -d ' ,')" -- "$cur"))
		return
	fi
	case $cur in
	UUID=*) COMPREPLY=($(compgen -W "$(blkid -t TYPE=bcachefs -s UUID -o value 2>/dev/null | sed 's/^/UUID=/')" -- "$cur")) ;;
	*) COMPREPLY=($(compgen -f -- "$cur")) ;;
	esac
}
complete -o filenames -F _kiln kiln
