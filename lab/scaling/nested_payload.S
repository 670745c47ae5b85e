/* The smallest hypervisor that gives its guest a TSC of its own, and that guest. Long mode, ring 0,
   identity-mapped, no interrupts. nested_vm.cc copies it into a VM: no absolute address in it. All
   four general registers are free; %rdi is the parameter block of nested_vm.h for both levels, for
   VMX switches no general register.

   L2 stops in an OUT that its hypervisor lets through, so that the VM comes back to us as L2; the
   VMCALL after it leads to L1, which stops in an OUT of its own and goes on behind the VMCALL. */

#define VMXON_REGION   0
#define VMCS_REGION    8
#define FIELD_COUNT   16
#define FIELDS        24
#define L2_TSC        32
#define L1_TSC        40
#define EXIT_REASON   48
#define VMX_ERROR     56

#define CR4_VMXE              0x2000
#define VM_INSTRUCTION_ERROR  0x4400
#define VM_EXIT_REASON        0x4402
#define GUEST_RIP             0x681e
#define VMCALL_BYTES          3

    .section .rodata
    .globl continuo_nested_l1, continuo_nested_l1_exit, continuo_nested_l2, continuo_nested_end
    .code64

continuo_nested_l1:
    movq %cr4, %rax
    orq $CR4_VMXE, %rax
    movq %rax, %cr4
    vmxon VMXON_REGION(%rdi)
    jna refused
    vmclear VMCS_REGION(%rdi)
    jna refused
    vmptrld VMCS_REGION(%rdi)
    jna refused
    movq FIELD_COUNT(%rdi), %rcx
    movq FIELDS(%rdi), %rsi
next_field:
    movq (%rsi), %rax
    movq 8(%rsi), %rdx
    vmwrite %rdx, %rax
    jna refused
    addq $16, %rsi
    decq %rcx
    jnz next_field
    vmlaunch
refused:
    movl $VM_INSTRUCTION_ERROR, %eax
    vmread %rax, %rdx
    movq %rdx, VMX_ERROR(%rdi)
    outb %al, $0x9f
    jmp refused

continuo_nested_l1_exit:
    movl $VM_EXIT_REASON, %eax
    vmread %rax, %rdx
    movq %rdx, EXIT_REASON(%rdi)
    rdtsc
    shlq $32, %rdx
    orq %rdx, %rax
    movq %rax, L1_TSC(%rdi)
    outb %al, $0x91
    movl $GUEST_RIP, %eax
    vmread %rax, %rdx
    addq $VMCALL_BYTES, %rdx
    vmwrite %rdx, %rax
    vmresume
    jmp refused

continuo_nested_l2:
    rdtsc
    shlq $32, %rdx
    orq %rdx, %rax
    movq %rax, L2_TSC(%rdi)
    outb %al, $0x92
    vmcall
    jmp continuo_nested_l2

continuo_nested_end:

    .section .note.GNU-stack, "", @progbits
