# A handler: compress a file, and print the size of what came of it.
set -eu
[ -r "$1" ] || { echo "there is no file $1" >&2; exit 66; }
echo '{"progress": 0.1, "note": "compressing"}' >&3
gzip -c -- "$1" > "$1.gz"
wc -c < "$1.gz"
