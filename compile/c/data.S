/* What the model reads and never writes. */
    .section .rodata
    .balign 64
    .globl intcert_constants
intcert_constants:
    .incbin "constants.bin"
    .balign 64
    .globl intcert_table
intcert_table:
    .incbin "table.bin"
    .balign 64
    .section .note.GNU-stack, "", %progbits
