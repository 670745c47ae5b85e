// The files of tests/scenarios, each with its name: struct continuo_scenario_file of scenario_choice.cc.
        .macro  scenario name, path
        .section .rodata.scenarios, "a"
1:      .asciz  "\name"
2:      .incbin "\path"
3:
        .section .data.rel.ro, "aw"
        .quad   1b, 2b, 3b
        .endm

        .section .data.rel.ro, "aw"
        .balign 8
        .globl  continuo_scenarios
continuo_scenarios:
#include "scenarios.inc"
        .section .data.rel.ro, "aw"
        .globl  continuo_scenarios_end
continuo_scenarios_end:
        .section .note.GNU-stack, "", %progbits
