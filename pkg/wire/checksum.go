package wire

import (
	"encoding/binary"
	"math/bits"
)

// Checksum is the Internet checksum (RFC 1071) of b, ready to be written into
// a header whose checksum field was zero. It is 0 over a header that carries
// its own correct checksum.
func Checksum(b []byte) uint16 { return ^fold(sum(0, b)) }

// SegmentChecksum is the checksum of an upper-layer segment with the
// pseudo-header of RFC 768 or RFC 8200 §8.1. addrs is the source and the
// destination address as they stand side by side in the IP header: 8 or 32
// bytes. The segment's checksum field must be zero.
func SegmentChecksum(addrs []byte, proto uint8, segment []byte) uint16 {
	return ^fold(sum(sum(uint64(proto)+uint64(len(segment)), addrs), segment))
}

// sum adds b to a ones' complement sum in 64-bit steps: the carries of a wider
// sum fold into the same 16 bits (RFC 1071 §2 (A) and (C)).
func sum(acc uint64, b []byte) uint64 {
	var carry uint64
	for len(b) >= 32 {
		acc, carry = bits.Add64(acc, binary.BigEndian.Uint64(b[0:8]), 0)
		acc, carry = bits.Add64(acc, binary.BigEndian.Uint64(b[8:16]), carry)
		acc, carry = bits.Add64(acc, binary.BigEndian.Uint64(b[16:24]), carry)
		acc, carry = bits.Add64(acc, binary.BigEndian.Uint64(b[24:32]), carry)
		acc, carry = bits.Add64(acc, 0, carry)
		acc += carry
		b = b[32:]
	}
	for len(b) >= 8 {
		acc, carry = bits.Add64(acc, binary.BigEndian.Uint64(b), 0)
		acc += carry
		b = b[8:]
	}
	if len(b) > 0 {
		var last [8]byte
		copy(last[:], b)
		acc, carry = bits.Add64(acc, binary.BigEndian.Uint64(last[:]), 0)
		acc += carry
	}
	return acc
}

func fold(acc uint64) uint16 {
	acc = acc>>32 + acc&0xffffffff
	acc = acc>>32 + acc&0xffffffff
	acc = acc>>16 + acc&0xffff
	acc = acc>>16 + acc&0xffff
	return uint16(acc)
}
