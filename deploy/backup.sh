#!/bin/sh
# Save everything that cannot be made again in one archive: deploy/backup.sh FILE [FOLDER...]
# The default folders are those of docs/how-to/deploy.md. The server may run meanwhile.
# To restore: tar -xpf FILE -C /
set -eu
umask 077
[ $# -ge 1 ] || { echo "Name the archive: $0 FILE [FOLDER...]" >&2; exit 2; }
file=$1
shift
[ $# -gt 0 ] || set -- /etc/baps /var/lib/baps /srv/baps/studies
number=$#
for folder in "$@"; do
  case $folder in /*) ;; *) echo "Name $folder from the root." >&2; exit 2 ;; esac
  [ -d "$folder" ] || { echo "There is no folder $folder." >&2; exit 2; }
  set -- "$@" "$folder/." # its content, even if it is a link
done
shift "$number"
# Converted series and cached features are omitted, because they can be made again.
status=0
said=$(tar -czf "$file.partial" --exclude=.converted --exclude=organs/readings --exclude='.partial-*' "$@" 2>&1) || status=$?
# 1: a file changed meanwhile, such as the audit file; the archive has some earlier state of it.
if [ "$status" -gt 1 ] || ! tar -tzf "$file.partial" >/dev/null; then
  echo "$said" >&2
  rm -f "$file.partial"
  exit 1
fi
mv "$file.partial" "$file"
echo "$file: $(du -h "$file" | cut -f1)"
