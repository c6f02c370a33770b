#!/bin/sh
# Stand-in on an emulated board: says what the board's recording says for this command line.
# An answer file holds the exit code in its first line, the text in the others.
answers=/usr/lib/edgesdk-answers
name=${0##*/}
say() {
    read -r status < "$1"
    first=yes
    while IFS= read -r line; do
        [ -z "$first" ] && printf '%s\n' "$line"
        first=
    done < "$1"
    exit "$status"
}
