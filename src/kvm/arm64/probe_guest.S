// What the probe guest runs, at EL1 with its MMU off, copied into guest memory by probe_vm.cc. Each
// question ends in a store of the answer, x0, to where no memory is: KVM_RUN then comes back with
// it. x19: where a store says that all went well; x20: where one says that something faulted.
    .section .rodata
    .balign 2048
    .global continuo_probe_guest, continuo_probe_guest_end
    .hidden continuo_probe_guest, continuo_probe_guest_end
continuo_probe_guest:

// The exception vectors, for VBAR_EL1: 16 of 128 bytes. Of each the answer is ESR_EL1.
    .rept 16
    mrs x0, esr_el1
    str x0, [x20]
    b .
    .balign 128
    .endr

    .macro question name
    .balign 16
    .global continuo_probe_\name
    .hidden continuo_probe_\name
continuo_probe_\name:
    .endm
    .macro answer
    str x0, [x19]
    b .
    .endm

    question cntvct
    isb
    mrs x0, cntvct_el0
    answer

    question cntpct
    isb
    mrs x0, cntpct_el0
    answer

    question cntfrq
    mrs x0, cntfrq_el0
    answer

// How long x1 reads of each counter take, in ticks of the virtual one.
    question cntvct_loop
    isb
    mrs x2, cntvct_el0
1:  mrs x3, cntvct_el0
    subs x1, x1, #1
    b.ne 1b
    isb
    mrs x0, cntvct_el0
    sub x0, x0, x2
    answer

    question cntpct_loop
    isb
    mrs x2, cntvct_el0
1:  mrs x3, cntpct_el0
    subs x1, x1, #1
    b.ne 1b
    isb
    mrs x0, cntvct_el0
    sub x0, x0, x2
    answer

// The virtual timer, x1 ticks ahead, its interrupt masked: how many ticks after that its condition
// is met, as the guest's own counter says.
    question vtimer
    isb
    mrs x2, cntvct_el0
    add x2, x2, x1
    msr cntv_cval_el0, x2
    mov x3, #3
    msr cntv_ctl_el0, x3
    isb
1:  mrs x3, cntv_ctl_el0
    tbz x3, #2, 1b
    isb
    mrs x0, cntvct_el0
    sub x0, x0, x2
    msr cntv_ctl_el0, xzr
    answer

    question ptimer
    isb
    mrs x2, cntpct_el0
    add x2, x2, x1
    msr cntp_cval_el0, x2
    mov x3, #3
    msr cntp_ctl_el0, x3
    isb
1:  mrs x3, cntp_ctl_el0
    tbz x3, #2, 1b
    isb
    mrs x0, cntpct_el0
    sub x0, x0, x2
    msr cntp_ctl_el0, xzr
    answer

// The call in x0 with its arguments in x1 to x3; the answers are in x0 to x3.
    question hvc
    hvc #0
    answer

continuo_probe_guest_end:
    .section .note.GNU-stack, "", %progbits
