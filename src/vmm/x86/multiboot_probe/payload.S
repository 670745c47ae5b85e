// A payload as public test payloads are: multiboot 1, entered in 32-bit protected mode, text on
// COM1, ended by the debug exit port. It prints its command line and its module, then does what the
// command line's last character says:
//   x  exit port, code 7          o  ACPI's soft off
//   r  reset port                 k  the keyboard controller's reset
//   t  triple fault               b  exit port, code 0, from a breakpoint's handler
//   e  prints what is typed, by interrupts through the PIC, up to a q
    .set MAGIC, 0x1badb002
    .set FLAGS, 0x10003           // modules aligned, memory sizes, addresses below are valid
    .set COM1, 0x3f8

    .code32
    .section .text
    .globl _start
_start:
header:
    .long MAGIC, FLAGS, -(MAGIC + FLAGS)
    .long header, header, image_end, memory_end, entry

entry:
    cli
    mov $stack_top, %esp
    cmp $0x2badb002, %eax
    jne fail
    mov %ebx, %ebp                // multiboot_info
    lgdt gdt_pointer
    ljmp $8, $1f
1:  mov $16, %eax
    mov %eax, %ds
    mov %eax, %es
    mov %eax, %ss
    cld
    movb $0x83, %al               // divisor latch, 8 bits
    mov $COM1 + 3, %dx
    outb %al, %dx
    movb $1, %al
    mov $COM1, %dx
    outb %al, %dx
    movb $0x03, %al
    mov $COM1 + 3, %dx
    outb %al, %dx

    mov $text_line, %esi
    call print
    mov 16(%ebp), %esi            // command line
    call print
    mov %esi, %edi                // behind its end
    mov $text_end, %esi
    call print
    testl $8, (%ebp)              // a module?
    jz act
    mov 24(%ebp), %eax
    mov (%eax), %esi
    mov 4(%eax), %ecx
    sub %esi, %ecx
2:  lodsb
    call print_byte
    loop 2b
act:
    movb -2(%edi), %al            // the command line's last character
    cmp $'x', %al
    je exit_7
    cmp $'o', %al
    je power_off
    cmp $'r', %al
    je reset_port
    cmp $'k', %al
    je reset_keyboard
    cmp $'t', %al
    je triple_fault
    cmp $'b', %al
    je breakpoint
    cmp $'e', %al
    je echo
fail:
    mov $0x60, %eax
    jmp exit

exit_7:
    mov $7, %eax
exit:
    mov $0xf4, %dx
    outl %eax, %dx
    jmp halt
power_off:
    mov $0x2000, %eax
    mov $0x604, %dx
    outw %ax, %dx
    jmp halt
reset_port:
    movb $6, %al
    mov $0xcf9, %dx
    outb %al, %dx
    jmp halt
reset_keyboard:
    inb $0x64, %al
    testb $2, %al
    jnz fail
    movb $0xfe, %al
    outb %al, $0x64
    jmp halt
triple_fault:
    lidt no_idt
    int3
breakpoint:
    mov $on_breakpoint, %eax
    mov $idt + 8 * 3, %edi
    call set_gate
    int3
    jmp fail
on_breakpoint:
    xor %eax, %eax
    jmp exit
halt:
    cli
    hlt
    jmp halt

// Prints the text at ESI up to its 0; ESI is behind that afterwards.
print:
    lodsb
    testb %al, %al
    jz 3f
    call print_byte
    jmp print
3:  ret

// Prints AL when the transmitter is empty.
print_byte:
    push %edx
    push %eax
    mov $COM1 + 5, %dx
4:  inb %dx, %al
    testb $0x20, %al
    jz 4b
    pop %eax
    mov $COM1, %dx
    outb %al, %dx
    pop %edx
    ret

// The handler at EAX becomes the interrupt gate at EDI.
set_gate:
    mov %ax, (%edi)
    shr $16, %eax
    mov %ax, 6(%edi)
    movw $8, 2(%edi)
    movw $0x8e00, 4(%edi)
    lidt idt_pointer
    ret

// COM1 is interrupt 4 of the PIC, here vector 0x24.
echo:
    mov $on_com1, %eax
    mov $idt + 8 * 0x24, %edi
    call set_gate
    movb $0x11, %al
    outb %al, $0x20
    movb $0x20, %al
    outb %al, $0x21
    movb $0x04, %al
    outb %al, $0x21
    movb $0x01, %al
    outb %al, $0x21
    movb $0xef, %al
    outb %al, $0x21
    movb $0x0b, %al               // DTR, RTS, and the gate of the interrupt
    mov $COM1 + 4, %dx
    outb %al, %dx
    movb $0x01, %al               // interrupt on reception
    mov $COM1 + 1, %dx
    outb %al, %dx
    mov $text_ready, %esi
    call print
5:  sti
    hlt
    jmp 5b

on_com1:
    mov $COM1 + 5, %dx
    inb %dx, %al
    testb $1, %al
    jz 6f
    mov $COM1, %dx
    inb %dx, %al
    call print_byte
    cmp $'q', %al
    jne on_com1
    xor %eax, %eax
    jmp exit
6:  movb $0x20, %al
    outb %al, $0x20
    iret

text_line:  .asciz "line: "
text_end:   .asciz "\n"
text_ready: .asciz "ready\n"

    .balign 8
gdt:
    .quad 0, 0x00cf9b000000ffff, 0x00cf93000000ffff
gdt_pointer:
    .word . - gdt - 1
    .long gdt
idt_pointer:
    .word 8 * 0x25 - 1
    .long idt
no_idt:
    .word 0
    .long 0
    .balign 4
image_end:

    .section .bss
    .balign 16
idt:
    .skip 8 * 0x25
    .skip 4096
stack_top:
memory_end:
    .section .note.GNU-stack, "", @progbits
