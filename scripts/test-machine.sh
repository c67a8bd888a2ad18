# What scripts/test-install tests on a machine of its own, beside all the rest. Read by `source`; needs bash.
# shellcheck shell=bash
# shellcheck disable=SC2016 # what is in single quotes is expanded inside
# shellcheck disable=SC2154 # set by scripts/test-install

say "Control groups of version 2 ..."
# Less than what the machine has.
settings '{"sandbox": {"max-processes": 200, "max-memory": 1000000000, "max-processors": 1, "max-processors-of-key": 1, "max-disk-rate-of-key": 5000000}}'
check "it restarts with other limits" inside systemctl restart claude-api.service
group=/sys/fs/cgroup$(inside systemctl show -P ControlGroup claude-api.service)
check "the responder is in a group below that of its unit" inside sh -c '
  grep -qx "$(systemctl show -P MainPID claude-api)" "$0/server/cgroup.procs"' "$group"
check "with a larger share of the processors" inside grep -qx 1000 "$group/server/cpu.weight"
check "it bounds memory, processes, processors and the disk" inside sh -c '
  journalctl -u claude-api --no-pager | grep "The sandbox works" | tail -n 1 | grep "bounds_memory=true" \
    | grep "bounds_processes=true" | grep "bounds_processors=true" | grep "bounds_disk=true"'

# bash_turn COMMAND...: the text that has the CLI run a command.
bash_turn() { printf '[[tool Bash %s]]' "$(jq -nc --arg command "$*" '{$command, timeout: 600000}')"; }
# group_of SESSION: its directory.
group_of() { inside sh -c 'printf %s "$0"/key-*/"$1"' "$group" "$1"; }
# has_in GROUP FILE PATTERN
has_in() { inside grep -xE -- "$3" "$1/$2" || { inside head -n 20 "$1/$2" && return 1; }; }
other=$(new_session)
check "a turn completes" say_to "$other" "Remember 7341"
own=$(group_of "$other")
check "its session is in a group" has_in "$own" cgroup.procs '[0-9]+'
for pair in memory.max:999997440 memory.swap.max:0 memory.oom.group:1 pids.max:200 'cpu.max:10000 10000'; do
  check "with ${pair%%:*} = ${pair#*:}" has_in "$own" "${pair%%:*}" "${pair#*:}"
done
check "in one of its key" has_in "${own%/*}" cpu.max '10000 10000'
check "which bounds what they write" has_in "${own%/*}" io.max '[0-9]+:[0-9]+ rbps=20000000 wbps=5000000 .*'
check "no process is beside the groups" inside sh -c '! grep . "$0/cgroup.procs" && ! grep . "$1/cgroup.procs"' "$group" "${own%/*}"
# Of its own groups an agent sees nothing that it could write.
check "an agent changes no group" refuses inside sh -c '
  pid=$(tail -n 1 "$0/cgroup.procs")
  nsenter -t "$pid" -m sh -c "find /sys/fs/cgroup -name \"*.max\" 2>/dev/null | grep ."' "$own"

bomb=$(new_session)
# It doesn't end by itself, and waits without another process.
tell "$bomb" "$(bash_turn 'mkfifo /tmp/f; exec 9<>/tmp/f; b() { b | b & }; b; read -t 1000 -u 9')" -H 'Prefer: respond-async' >/dev/null
bombed() { has_in "$(group_of "$bomb")" pids.events 'max [1-9][0-9]*'; }
check "a fork bomb meets its limit" eventually bombed
check "which holds" inside sh -c '[ "$(cat "$0/pids.current")" -le 200 ]' "$(group_of "$bomb")"
check "a turn of another session completes meanwhile" say_to "$other" "Which number?"
check "it can be ended" ask POST "/sessions/$bomb/interrupt" -f
check "the turn with it" until_states "$bomb" interrupted
check "and the session goes on" say_to "$bomb" "And now?"

hog=$(new_session)
check "a turn completes" say_to "$hog" "Remember 2718"
out_of_memory() { [[ $(tell "$hog" "$(bash_turn 'perl -e "my \$x = q(a) x 1500000000; print length \$x"')" | tee /dev/stderr | jq -r .code) == out_of_memory ]]; }
check "one that takes too much memory ends with out_of_memory" out_of_memory
check "the machine had enough" inside sh -c '! journalctl -k --no-pager | grep "Out of memory: Killed"'
check "another session didn't notice" say_to "$other" "Which number?"
check "and the session goes on" say_to "$hog" "Which number?"

# Two that never rest have together what one key may have.
for session in "$bomb" "$hog"; do
  tell "$session" "$(bash_turn 'for i in 1 2 3; do while :; do :; done & done; sleep 1000')" -H 'Prefer: respond-async' >/dev/null
done
busy() { has_in "${own%/*}" cpu.stat 'nr_throttled [1-9][0-9]*'; }
check "two sessions meet the limit of their key's processors" eventually busy
check "and have no more than that" inside sh -c '
  usage() { sed -n "s/^usage_usec //p" "$0/cpu.stat"; }
  set -- "$(usage)" "$(date +%s%6N)"
  sleep 10
  share=$((100 * ($(usage) - $1) / ($(date +%s%6N) - $2)))
  echo "$share %"
  [ "$share" -gt 50 ] && [ "$share" -le 110 ]' "${own%/*}"
check "requests are answered meanwhile" answers GET "/sessions/$other" 200
for session in "$bomb" "$hog"; do check "it is ended" ask POST "/sessions/$session/interrupt" -f; done

tell "$hog" "$(bash_turn 'while :; do dd if=/dev/zero of=full bs=1M count=100; done')" -H 'Prefer: respond-async' >/dev/null
written() { inside sed -nE 's/.* wbytes=([0-9]+) .*/\1/p' "${own%/*}/io.stat"; }
before=$(written)
has_written() { local now; now=$(written) && ((now > ${before:-0} + 20000000)); }
check "what an agent writes without pause comes to the disk" eventually has_written
check "not faster than it may" inside sh -c '
  usage() { sed -nE "s/.* wbytes=([0-9]+) .*/\1/p" "$0/io.stat"; }
  set -- "$(usage)" "$(date +%s%6N)"
  sleep 20
  rate=$((($(usage) - $1) * 1000000 / ($(date +%s%6N) - $2)))
  echo "$rate bytes/s"
  [ "$rate" -gt 1000000 ] && [ "$rate" -le 6000000 ]' "${own%/*}"
check "a turn of another session completes meanwhile" say_to "$other" "Which number?"
check "it is ended" ask POST "/sessions/$hog/interrupt" -f

# As many as there is time for.
count=$((patience == 1 ? 50 : 5))
say "$count sessions ..."
descriptors() { inside sh -c 'ls "/proc/$(systemctl show -P MainPID claude-api)/fd" | wc -l'; }
tokens() { inside sh -c 'ls /run/claude-api/model-tokens | wc -l'; }
had=("$(descriptors)" "$(tokens)")
not_more() { say "$(descriptors) $(tokens)" && (($(descriptors) <= had[0] && $(tokens) <= had[1])); }
short_session() {
  local session
  session=$(ask POST /sessions -d '{"initial_prompt": "Hello"}' | jq -er 'select(.initial_response).session.id') \
    && answers DELETE "/sessions/$session" 200
}
short_sessions() {
  local i pid waited=()
  for ((i = 0; i < count; i++)); do
    short_session &
    waited+=($!)
    # Some at a time.
    if ((i % 5 == 4)); then
      for pid in "${waited[@]}"; do wait "$pid" || return 1; done
      waited=()
    fi
  done
}
check "each has its turn" short_sessions
# Groups are removed when the next one is made, if they are older than a minute.
left() { inside sh -c 'ls -d "$0"/key-*/*-*-*-*-* | wc -l' "$group"; }
few_left() {
  local session
  session=$(ask POST /sessions -d '{"initial_prompt": "Hello"}' | jq -er .session.id) && answers DELETE "/sessions/$session" 200 || return 1
  (($(left) <= 8)) || { left && sleep 5 && return 1; }
}
check "the groups of those that ended are removed" within 120 few_left
check "descriptors and tokens are not more than before (${had[*]})" eventually not_more
inside systemctl stop claude-api.socket claude-api.service
check "nothing is left of the groups when the responder is stopped" refuses inside test -e "$group"
# For what follows, which is slow enough.
settings '{"sandbox": {"max-processors": 2, "max-processors-of-key": 2}}'
inside systemctl start claude-api.socket claude-api.service

say "A reboot ..."
boot_id() { inside cat /proc/sys/kernel/random/boot_id; }
boot=$(boot_id)
inside systemctl reboot || true
again() { [[ $(boot_id 2>/dev/null) == [0-9a-f]* && $(boot_id) != "$boot" ]]; }
check "it comes up" eventually again
until_booted "$init_pid"
start_model
check "and answers" eventually answers GET "/sessions/$other" 200
check "all units run" inside systemctl is-active claude-api.socket claude-api-websocket.socket claude-api.service claude-api-nginx.service claude-api-logrotate.timer
check "the conversation goes on" say_to "$other" "Which number?"

say "A loss of power ..."
check "a turn completes" say_to "$other" "The last word"
states=$(turn_states "$other")
kill -s KILL "$init_pid"
wait "$init_pid" 2>/dev/null || true
boot
start_model
check "it comes up and answers" eventually answers GET "/sessions/$other" 200
check "no turn is missing" until_states "$other" "$states"
check "the conversation goes on" say_to "$other" "Which number?"
