#!/bin/sh
# All that cannot be made again, into one archive: deploy/backup.sh FILE [FOLDER...]
# Folders as in docs/how-to/deploy.md, or those that are named, from the root. The server may run.
# To restore: tar -xpf FILE -C /
set -eu
umask 077
[ $# -ge 1 ] || { echo "Say where to: $0 FILE [FOLDER...]" >&2; exit 2; }
file=$1
shift
[ $# -gt 0 ] || set -- /etc/baps /var/lib/baps /srv/baps/studies
number=$#
for folder in "$@"; do
  case $folder in /*) ;; *) echo "Name $folder from the root." >&2; exit 2 ;; esac
  [ -d "$folder" ] || { echo "There is no folder $folder." >&2; exit 2; }
  set -- "$@" "$folder/." # what it holds, also where it is a link
done
shift "$number"
# Left out is what is made again: series as NIfTI, and what the organ model read.
status=0
said=$(tar -czf "$file.partial" --exclude=.converted --exclude=organs/readings --exclude='.partial-*' "$@" 2>&1) || status=$?
# 1: a file was written to meanwhile, such as the audit file; it is there as it was at some instant.
if [ "$status" -gt 1 ] || ! tar -tzf "$file.partial" >/dev/null; then
  echo "$said" >&2
  rm -f "$file.partial"
  exit 1
fi
mv "$file.partial" "$file"
echo "$file: $(du -h "$file" | cut -f1)"
