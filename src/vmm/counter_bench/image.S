// The counter benchmark's payload as its own build made it.
        .section .rodata.counter_bench, "a", @progbits
        .balign 16
        .globl  continuo_counter_bench_begin
        .globl  continuo_counter_bench_end
continuo_counter_bench_begin:
        .incbin CONTINUO_COUNTER_BENCH_BIN
continuo_counter_bench_end:
        .section .note.GNU-stack, "", @progbits
