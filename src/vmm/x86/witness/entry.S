// The payload's header, the entry of every vCPU, and the interrupt gates.
// Offsets and selectors as in witness_machine.h and the host's boot tables.

        .section .header, "a"
        .quad   0x53534e5449574f43      // kMagic
        .long   5                       // kVersion
        .long   0
        .quad   witness_entry
        .quad   timer_gate
        .quad   spurious_gate
        .quad   fault_gates

        .text
        .code64
        .globl  witness_entry

// RDI = report, RSI = control; the host has set a kernel stack, long mode, GDT, IDT and TSS.
witness_entry:
        push    %rdi
        push    %rsi
        call    witness_setup           // returns 1 where ring 3 is wanted
        pop     %rsi
        pop     %rdi
        test    %eax, %eax
        jz      1f
        // Stack of ring 3: the lower half of this vCPU's 8 KiB.
        mov     %rsp, %rax
        and     $-0x2000, %rax
        add     $0x1000, %rax
        sub     $8, %rax                // as after a call
        push    $0x1b                   // user data, RPL 3
        push    %rax
        push    $0x202                  // interrupts on
        push    $0x23                   // user code, RPL 3
        lea     witness_watch(%rip), %rax
        push    %rax
        iretq
1:      sti
        call    witness_watch
        ud2

        .macro  save_registers
        push    %rax
        push    %rcx
        push    %rdx
        push    %rsi
        push    %rdi
        push    %r8
        push    %r9
        push    %r10
        push    %r11
        .endm
        .macro  restore_registers
        pop     %r11
        pop     %r10
        pop     %r9
        pop     %r8
        pop     %rdi
        pop     %rsi
        pop     %rdx
        pop     %rcx
        pop     %rax
        .endm

// The first word of each 8 KiB stack holds the vCPU's report, whatever ring was interrupted.
        .macro  report_of_stack to
        mov     %rsp, \to
        and     $-0x2000, \to
        mov     (\to), \to
        .endm

timer_gate:
        save_registers
        report_of_stack %rdi
        call    witness_timer
        restore_registers
        iretq

spurious_gate:
        iretq

// An exception: 16 bytes each. Where the CPU pushes no error code, a zero takes its place.
        .balign 16
fault_gates:
        .set    vector, 0
        .rept   32
        .balign 16
        .if     !(vector == 8 || (vector >= 10 && vector <= 14) || vector == 17 || vector == 21 || vector == 29 || vector == 30)
        push    $0
        .endif
        push    $vector
        jmp     fault
        .set    vector, vector + 1
        .endr
fault:
        report_of_stack %rdi
        pop     %rsi                    // vector
        pop     %rdx                    // error code
        mov     (%rsp), %rcx            // RIP
        call    witness_fault
        ud2
        .section .note.GNU-stack, "", @progbits
