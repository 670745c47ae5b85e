// What the witness's entry code wants beside the payload on x86-64. The benchmark arms no timer.
extern "C" void witness_timer() {}
