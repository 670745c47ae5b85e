// The payload's header, the entry of every vCPU, and the exception vectors. Addresses as in
// witness_abi.h and witness_machine.h.

        .section .header, "a"
        .quad   0x53534e5449574f43      // kMagic
        .long   5                       // kVersion
        .long   0
        .quad   witness_entry

        .text
        .globl  witness_entry

// X0 = report, X1 = control; the host has set SP_EL1 and masked interrupts, and the MMU is off.
witness_entry:
        adr     x2, vectors
        msr     vbar_el1, x2
        mov     x2, #0xff               // attribute 0: normal, write-back; attribute 1: device-nGnRnE
        msr     mair_el1, x2
        ldr     x2, =tcr
        msr     tcr_el1, x2
        mov     x2, #0x1000             // kTranslationTable
        msr     ttbr0_el1, x2
        isb
        tlbi    vmalle1
        ic      iallu
        dsb     nsh
        isb
        mrs     x2, sctlr_el1
        mov     x3, #0x1005             // I, C, M: exclusives need cacheable memory
        orr     x2, x2, x3
        msr     sctlr_el1, x2
        isb
        mov     x19, x0
        mov     x20, x1
        bl      witness_setup
        mov     x0, x19
        mov     x1, x20
        bl      witness_watch
        brk     #0

// 39 bits of address by TTBR0 (T0SZ 25), walks cacheable and inner shareable, 4 KiB granules, no
// TTBR1 (EPD1), 36 bits of physical address (IPS): as far as the devices.
        .equ    tcr, 25 | 1 << 8 | 1 << 10 | 3 << 12 | 1 << 23 | 1 << 32

        .balign 2048
vectors:
        .set    vector, 0
        .rept   16
        .balign 128
        mov     x1, #vector
        b       fault
        .set    vector, vector + 1
        .endr
// The first word of each 8 KiB stack holds the vCPU's report.
fault:
        mov     x4, sp
        and     x4, x4, #-0x2000
        ldr     x0, [x4]
        mrs     x2, esr_el1
        mrs     x3, elr_el1
        bl      witness_fault
        brk     #0
        .section .note.GNU-stack, "", @progbits
