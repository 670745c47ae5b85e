# Runs on both hosts of `continuo-lab pair`: a boots a Linux guest, and it moves from one to the other and
# back, once for each policy given. What the judge needs goes to stdout, a JSON document a line, each with
# its event; what the guest prints goes to stderr.
#
#     linux_side.sh FOLDER PROGRAM CROSSHOST POLICY...

cd "$1" || exit 90
program=$2
crosshost=$3
shift 3
me=$CONTINUO_LAB_NAME
there=$([ "$me" = a ] && echo 10.77.0.2 || echo 10.77.0.1)
meetings=0

fail() {  # what, exit code
    echo "host $me: $1" >&2
    cat printed* >&2
    exit "$2"
}

# Both come here, as often as each other.
meet() {
    meetings=$((meetings + 1))
    if [ "$me" = a ]; then
        nc -l -p $((7100 + meetings)) >met </dev/null || fail "nobody came to meeting $meetings" 91
        [ "$(cat met)" = b ] || fail "a stranger came to meeting $meetings" 91
    else
        until echo b | nc a $((7100 + meetings)) >/dev/null 2>&1; do sleep 0.2; done
    fi
}

# Which counter values of the two hosts are of one instant; b says so.
pair_counters() {
    meet
    "$crosshost" pairing --count 1 || fail "the counters were not paired" 92
}

await() {  # text, file: in which it stands once
    until grep -q "$1" "$2"; do
        kill -0 $vm 2>/dev/null || fail "the VM ended: '$1' did not come" 93
        sleep 0.2
    done
}

say() {  # event, key, file: {"event": ..., "host": ..., "move": ..., "policy": ..., key: the file's JSON}
    printf '{"event": "%s", "host": "%s", "move": %d, "policy": "%s", "%s": %s}\n' \
        "$1" "$me" "$move" "$policy" "$2" "$(tr '\n' ' ' <"$3")"
}

# The guest says how its clocks did so far; its loop runs while it moves.
ask_guest() {
    echo ask >typed
    await 'clocks:' printed
    grep 'clocks:' printed | sed 's/.*clocks: loops \([0-9]*\) backward \([0-9]*\) forward_ns \([0-9]*\) monotonic_ns \([0-9]*\).*/{"loops": \1, "backward": \2, "forward_ns": \3, "monotonic_ns": \4}/' >told
    cat printed >&2
    say guest clocks told
}

new_console() {
    rm -f typed printed
    mkfifo typed
    : >printed
}

send() {
    pair_counters
    "$program" vm send --control control --to "tcp:$there:7000" --force --json >sent || { cat sent >&2; fail "it did not move" 94; }
    wait $vm
    say left sent sent
    pair_counters
}

receive() {
    new_console
    "$program" vm receive --listen tcp:0.0.0.0:7000 --policy "$policy" --input typed --control control --json \
        >received 2>printed &
    vm=$!
    await 'listening on' printed
    pair_counters
    # The certificate's document ends it.
    await '^}' received
    "$program" capture --control control --json >captured || fail "its clocks cannot be read" 95
    say arrived received received
    say captured record captured
    pair_counters
    ask_guest
}

move=0
policy=none
if [ "$me" = a ]; then
    new_console
    "$program" vm run --kernel vmlinuz --initrd initrd.gz --cpus 2 --memory 128M --input typed --control control --json \
        --append 'console=ttyS0 panic=-1 quiet' >ran 2>printed &
    vm=$!
    await 'guest: ready' printed
    sleep 1
    ask_guest
    here=yes
else
    here=
fi
for policy in "$@"; do
    move=$((move + 1))
    if [ "$here" ]; then
        send
        here=
    else
        receive
        here=yes
    fi
done
if [ "$here" ]; then
    echo off >typed
    wait $vm || fail "the VM ended with $?" 96
fi
