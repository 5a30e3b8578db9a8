package lab

import "fmt"

// BootDisk is a raw disk image that a BIOS boots: its first sector prints the
// text on the first serial port and halts, the rest is zero.
func BootDisk(text string) ([]byte, error) {
	const (
		load   = 0x7c00 // where the BIOS puts the sector
		sector = 512
		// SeaBIOS reads the sector by cylinder, head and sector, and a disk without
		// one whole cylinder has none that it can read.
		size = 1 << 20
	)
	program := []byte{
		0xfc,       // cld
		0xfa,       // cli
		0x31, 0xc0, // xor ax, ax
		0x8e, 0xd8, // mov ds, ax
		0xbe, 0, 0, // mov si, text      (filled in below)
		// next:
		0xba, 0xfd, 0x03, // mov dx, 0x3fd     (the port's line status)
		// wait:
		0xec,       // in al, dx
		0xa8, 0x20, // test al, 0x20     (does it take a byte?)
		0x74, 0xfb, // jz wait
		0xba, 0xf8, 0x03, // mov dx, 0x3f8     (its data)
		0xac,       // lodsb
		0x84, 0xc0, // test al, al
		0x74, 0x03, // jz end
		0xee,       // out dx, al
		0xeb, 0xed, // jmp next
		// end:
		0xf4,       // hlt
		0xeb, 0xfd, // jmp end
	}
	at := load + len(program)
	program[7], program[8] = byte(at), byte(at>>8)
	disk := make([]byte, size)
	n := copy(disk, program)
	n += copy(disk[n:sector-3], text) // a zero ends it
	if want := len(program) + len(text); n < want {
		return nil, fmt.Errorf("make a disk to boot: the text is %d bytes too long", want-n)
	}
	disk[sector-2], disk[sector-1] = 0x55, 0xaa // the mark of a boot sector
	return disk, nil
}
