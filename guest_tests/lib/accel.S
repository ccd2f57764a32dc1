/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * A 64 KiB ROM that proves that an accelerator works: from the reset vector through protected mode into long mode with
 * paging, a CPUID and a store that is read back, then 42 to the debug-exit port. If anything goes wrong on the
 * way, the port is not written, and the host's deadline expires.
 *
 * The ROM is mapped at 0xf0000 (and below 4 GiB); tables are built in RAM at 0x1000.
 */
	.set PML4, 0x1000
	.set PDPT, 0x2000
	.set PD,   0x3000

	.section .text
	.code16
start16:
	cli
	mov %cs, %ax
	mov %ax, %ds
	lgdtl gdt_pointer - start16
	mov %cr0, %eax
	or $1, %eax
	mov %eax, %cr0
	ljmpl $8, $(0xf0000 + start32 - start16)

	.code32
start32:
	mov $16, %ax
	mov %ax, %ds
	mov %ax, %es
	mov %ax, %ss
	mov $0x8000, %esp
	cld
	xor %eax, %eax
	mov $PML4, %edi
	mov $(3 * 1024), %ecx
	rep stosl
	movl $(PDPT + 3), PML4
	movl $(PD + 3), PDPT
	movl $0x83, PD		/* the first 2 MiB, identity, one large page */
	mov %cr4, %eax
	or $0x20, %eax		/* PAE */
	mov %eax, %cr4
	mov $PML4, %eax
	mov %eax, %cr3
	mov $0xc0000080, %ecx	/* EFER.LME */
	rdmsr
	or $0x100, %eax
	wrmsr
	mov %cr0, %eax
	or $0x80000000, %eax	/* PG */
	mov %eax, %cr0
	ljmp $24, $(0xf0000 + start64 - start16)

	.code64
start64:
	xor %eax, %eax
	cpuid
	mov %rbx, 0x9000
	cmp %rbx, 0x9000
	jne fail
	mov $0x501, %dx
	mov $42, %al
	out %al, %dx
fail:
	hlt
	jmp fail

	.balign 8
gdt:
	.quad 0
	.quad 0x00cf9b000000ffff	/* 8: 32-bit code */
	.quad 0x00cf93000000ffff	/* 16: data */
	.quad 0x00af9b000000ffff	/* 24: 64-bit code */
gdt_pointer:
	.word gdt_pointer - gdt - 1
	.long 0xf0000 + gdt - start16

	.org 0xfff0
	.code16
	ljmp $0xf000, $0	/* the reset vector */
	.org 0x10000
