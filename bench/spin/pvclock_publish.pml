/* pvclock-publish of `continuo explore`, variant sc-3-readers, for SPIN: one publisher, three readers,
 * two updates, sequential consistency. One statement, d_step or atomic here is one step there: an
 * access to the page and what its process makes of it. A local that nobody reads again is 0, and a
 * process that is done stays where it is, so that both programs count the same states.
 * bench/explore_spin runs both. */
#define READERS 3

byte version, tsc_timestamp, system_time, tsc_to_system_mul, tsc_shift, flags;

active proctype host()
{
    version = 1;
    tsc_timestamp = 1; system_time = 1; tsc_to_system_mul = 1; tsc_shift = 1; flags = 1;
    version = 2;
    version = 3;
    tsc_timestamp = 2; system_time = 2; tsc_to_system_mul = 2; tsc_shift = 2; flags = 2;
    version = 4;
end_host:
    false
}

active [READERS] proctype reader()
{
    byte seen, update, torn;
again:
    seen = version & 254;
    update = tsc_timestamp;
    torn = (system_time != update);
    torn = torn || (tsc_to_system_mul != update);
    torn = torn || (tsc_shift != update);
    torn = torn || (flags != update);
    atomic {
        if
        :: version != seen -> d_step { seen = 0; update = 0; torn = 0 }; goto again
        :: else -> d_step { assert(!torn); seen = 0; update = 0; torn = 0 }
        fi
    };
end_reader:
    false
}
