# shellcheck shell=bash
# What the plain node and the one under Patroni have in common; sourced, not run.

readonly SECRETS=/run/secrets/atelier RUN=/run/postgresql

say() { printf 'node: %s\n' "$*" >&2; }
die() { say "$*"; exit 1; }
secret() { cat "$SECRETS/$1"; }

# libpq takes passwords from a file that nobody else can read, so they are on no command line and in no log.
write_passfile() {
  (umask 0177
   printf '*:*:*:%s:%s\n' postgres "$(secret superuser)" replicator "$(secret replicator)" > "$RUN/passfile.new"
   mv -f "$RUN/passfile.new" "$RUN/passfile")
}

# The roles, the database and its schema, over a connection that the caller's arguments name.
make_roles() {
  local role
  for role in migrator writer reader monitor replicator; do
    export "ATELIER_${role^^}_PASSWORD=$(secret "$role")"
  done
  psql --no-psqlrc --quiet --set=ON_ERROR_STOP=1 --file=/etc/atelier/replication/roles.sql "$@" > /dev/null
}
