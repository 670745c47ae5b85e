// The witness payload as its own build made it.
        .section .rodata.witness, "a", @progbits
        .balign 16
        .globl  continuo_witness_begin
        .globl  continuo_witness_end
continuo_witness_begin:
        .incbin CONTINUO_WITNESS_BIN
continuo_witness_end:
        .section .note.GNU-stack, "", @progbits
