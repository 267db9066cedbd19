-- The roles, the database, its schema and what each role may do. Run with psql as the superuser, on a primary:
--   psql --no-psqlrc --set=ON_ERROR_STOP=1 --dbname=postgres --file=roles.sql
-- The passwords come from the environment (ATELIER_*_PASSWORD): a command line is open to every process of the machine.
-- Nothing of the service runs as the superuser: it holds the passwords of reader, writer and monitor alone. Who makes and
-- re-shapes the cluster (these roles, slots, a promotion, a pause of replay) is a person, by `atelier up` or `atelier
-- cluster`, as the superuser, from the machine itself. Standbys, clones and rewinds connect as `replicator`.
-- Idempotent: a second run changes nothing but the salt of the password hashes. PostgreSQL 17 and 18.

\set ON_ERROR_STOP on
\getenv migrator_password ATELIER_MIGRATOR_PASSWORD
\getenv writer_password ATELIER_WRITER_PASSWORD
\getenv reader_password ATELIER_READER_PASSWORD
\getenv monitor_password ATELIER_MONITOR_PASSWORD
\getenv replicator_password ATELIER_REPLICATOR_PASSWORD

-- No statement below may reach a log: it carries a password. Also after a failure, hence the error level.
set log_statement = 'none';
set log_min_duration_statement = -1;
set log_min_error_statement = 'panic';
set client_min_messages = 'warning';

-- An unset variable would be sent as it stands and end in a syntax error that names nobody.
select :{?migrator_password} and :{?writer_password} and :{?reader_password}
   and :{?monitor_password} and :{?replicator_password} as all_set \gset
\if :all_set
\else
do $$ begin
    raise exception 'set ATELIER_{MIGRATOR,WRITER,READER,MONITOR,REPLICATOR}_PASSWORD in the environment';
end $$;
\endif

-- ---------------------------------------------------------------- roles

select format('create role %I', name) as create_role
  from unnest(array['owner', 'migrator', 'writer', 'reader', 'monitor', 'replicator']) as name
 where not exists (select from pg_catalog.pg_roles where rolname = name)
\gexec

-- Attributes are set on every run, so that a change made by hand does not last. The limits add up to less than
-- max_connections: readers can't take the writers' connections, nor anybody the monitor's.
alter role owner      nologin nosuperuser nocreatedb nocreaterole noreplication nobypassrls;
alter role migrator   login nosuperuser nocreatedb nocreaterole noreplication nobypassrls connection limit 10;
alter role writer     login nosuperuser nocreatedb nocreaterole noreplication nobypassrls connection limit 50;
alter role reader     login nosuperuser nocreatedb nocreaterole noreplication nobypassrls connection limit 110;
alter role monitor    login nosuperuser nocreatedb nocreaterole noreplication nobypassrls connection limit 20;
alter role replicator login nosuperuser nocreatedb nocreaterole replication   nobypassrls connection limit 16;

alter role migrator   password :'migrator_password';
alter role writer     password :'writer_password';
alter role reader     password :'reader_password';
alter role monitor    password :'monitor_password';
alter role replicator password :'replicator_password';

-- The migrator acts as the owner; what it makes belongs to `owner`, whoever migrates.
grant owner to migrator with inherit true, set true;
grant pg_monitor to monitor;

-- pg_rewind over the network. Nothing new to a role that may copy the whole cluster anyway. The grants are local to the
-- database that it connects to, `postgres`.
grant connect on database postgres to replicator;
grant execute on function pg_catalog.pg_ls_dir(text, boolean, boolean),
                          pg_catalog.pg_stat_file(text, boolean),
                          pg_catalog.pg_read_binary_file(text),
                          pg_catalog.pg_read_binary_file(text, bigint, bigint, boolean)
   to replicator;

-- ---------------------------------------------------------------- database

select 'create database atelier' where not exists (select from pg_catalog.pg_database where datname = 'atelier')
\gexec

-- Timeouts per role are a backstop behind the service's own deadlines: they also hold for a client that has none.
alter role reader   set default_transaction_read_only = on;
alter role reader   set statement_timeout = '5s';
alter role reader   set lock_timeout = '1s';
alter role reader   set idle_in_transaction_session_timeout = '5s';
alter role reader   set transaction_timeout = '10s';
-- A command waits for hot rows up to its own deadline; nobody may hold them by doing nothing.
alter role writer   set statement_timeout = '15s';
alter role writer   set lock_timeout = '10s';
alter role writer   set idle_in_transaction_session_timeout = '5s';
alter role writer   set transaction_timeout = '30s';
alter role monitor  set default_transaction_read_only = on;
alter role monitor  set statement_timeout = '2s';
alter role monitor  set lock_timeout = '1s';
alter role monitor  set idle_in_transaction_session_timeout = '2s';
alter role monitor  set transaction_timeout = '5s';
-- Building an index may take long; waiting for a lock in front of everybody else may not: the migration retries.
alter role migrator set statement_timeout = '15min';
alter role migrator set lock_timeout = '2s';
alter role migrator set idle_in_transaction_session_timeout = '30s';
alter role migrator set transaction_timeout = '30min';
-- For its sessions in a database alone: a standby's and a clone's connection belongs to none, so that no role's settings
-- reach it, and pg_rewind, which may read for long, switches the timeouts off for itself.
alter role replicator set statement_timeout = '15s';
alter role replicator set lock_timeout = '1s';
alter role replicator set idle_in_transaction_session_timeout = '5s';
alter role replicator set transaction_timeout = '30s';

alter role migrator in database atelier set role = 'owner';
alter role migrator set search_path = atelier;
alter role writer   set search_path = atelier;
alter role reader   set search_path = atelier;
alter role monitor  set search_path = pg_catalog;

-- PUBLIC gets nothing, neither here nor by way of the databases that every cluster has.
revoke all on database atelier, postgres, template1 from public;
grant connect on database atelier to migrator, writer, reader, monitor;
-- An import builds the new catalogue in a schema of its own before it is swapped in.
grant create on database atelier to owner;

\connect atelier
set log_statement = 'none';
set client_min_messages = 'warning';

revoke all on schema public from public;
create schema if not exists atelier authorization owner;
alter schema atelier owner to owner;
revoke all on schema atelier from public;
grant usage on schema atelier to writer, reader;

-- What the owner makes later: functions are open to PUBLIC unless this says otherwise; migrations grant by name.
alter default privileges for role owner revoke execute on functions from public;

-- Two ways to write that PUBLIC has by default, with no grant on any table: large objects, and messages into the WAL.
-- (A role may always change its own password and settings; PostgreSQL has no grant for that.)
select format('revoke execute on function %s from public', oid::regprocedure)
  from pg_catalog.pg_proc
 where pronamespace = 'pg_catalog'::regnamespace
   and (proname in ('lo_creat', 'lo_create', 'lo_from_bytea', 'lo_import', 'lo_export', 'lo_open', 'lo_put',
                    'lo_truncate', 'lo_truncate64', 'lo_unlink', 'lowrite')
        or proname = 'pg_logical_emit_message')
\gexec
-- The writer makes an answer wait for the quorum by a small message.
select format('grant execute on function %s to writer', oid::regprocedure)
  from pg_catalog.pg_proc
 where pronamespace = 'pg_catalog'::regnamespace and proname = 'pg_logical_emit_message'
\gexec

-- ---------------------------------------------------------------- monitoring

create schema if not exists atelier_monitor;
revoke all on schema atelier_monitor from public;
grant usage on schema atelier_monitor to monitor, reader;

-- Runs as the superuser, so that nobody else needs pg_read_file. The search path is fixed: a caller's own would decide
-- which functions the superuser runs. The file's name is formed from what the directory lists, never from an argument.
create or replace function atelier_monitor.newest_history(out timeline integer, out content text)
    returns setof record
    language sql stable security definer
    set search_path = pg_catalog, pg_temp
as $$
    select ('x' || left(file.name, 8))::bit(32)::integer, pg_read_file('pg_wal/' || file.name)
      from pg_ls_waldir() as file
     where file.name ~ '^[0-9A-F]{8}\.history$'
     order by file.name desc
     limit 1
$$;
comment on function atelier_monitor.newest_history() is
    'The newest timeline history file of this node: its timeline, and one line per fork. No row before the first promotion.';
revoke all on function atelier_monitor.newest_history() from public;
grant execute on function atelier_monitor.newest_history() to monitor;

-- Every answer of a standby tells the timeline of what it shows, and details of the WAL receiver are for pg_monitor only.
create or replace function atelier_monitor.received_timeline() returns integer
    language sql stable security definer
    set search_path = pg_catalog, pg_temp
    return (select receiver.received_tli from pg_catalog.pg_stat_get_wal_receiver() as receiver);
comment on function atelier_monitor.received_timeline() is
    'The timeline that this standby receives; NULL while its WAL receiver is away.';
revoke all on function atelier_monitor.received_timeline() from public;
grant execute on function atelier_monitor.received_timeline() to reader;

-- What of the log is on at least that many of the standbys that a commit waits for; no row value while they are fewer.
-- The view shows positions to monitors alone; the writer learns this one figure.
create or replace function atelier_monitor.quorum_position(standbys integer) returns pg_lsn
    language sql volatile security definer
    set search_path = pg_catalog, pg_temp
as $$
    select flush_lsn from pg_stat_replication where sync_state in ('quorum', 'sync') and flush_lsn is not null
     order by flush_lsn desc offset standbys - 1 limit 1
$$;
comment on function atelier_monitor.quorum_position(integer) is
    'The position that this many synchronous standbys have flushed; null while there are fewer.';
revoke all on function atelier_monitor.quorum_position(integer) from public;
grant usage on schema atelier_monitor to writer;
grant execute on function atelier_monitor.quorum_position(integer) to writer;
