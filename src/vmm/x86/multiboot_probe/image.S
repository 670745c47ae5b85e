// The multiboot payload as its own build made it.
        .section .rodata.multiboot_probe, "a", @progbits
        .balign 16
        .globl  continuo_multiboot_probe_begin
        .globl  continuo_multiboot_probe_end
continuo_multiboot_probe_begin:
        .incbin CONTINUO_MULTIBOOT_PROBE_BIN
continuo_multiboot_probe_end:
        .section .note.GNU-stack, "", @progbits
