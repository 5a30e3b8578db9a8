package rawsock

import (
	"slices"

	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"

	"github.com/slash32/slash32/pkg/mac"
	"github.com/slash32/slash32/pkg/wire"
)

// MaxFrame is how much of a frame reaches the reader, in bytes. Nothing that a
// client asks is longer; what is, arrives cut (segmentation offload lets a guest
// hand over 64 KiB) and does not hold the kernel's memory.
const MaxFrame = 2048

const (
	drop   = 0
	accept = MaxFrame
)

// program is the whole filter: only the guest's own frames, and of those only
// what a responder answers. Of a frame with a VLAN tag it passes the addresses
// alone (wire.TaggedLen), to be counted.
func program(guest mac.Addr) []bpf.Instruction {
	return append([]bpf.Instruction{
		// The kernel takes a VLAN tag out of the frame: what is left looks like
		// an untagged request, and an untagged answer would be wrong.
		bpf.LoadExtension{Num: bpf.ExtVLANTagPresent},
		bpf.JumpIf{Cond: bpf.JumpEqual, Val: 0, SkipTrue: 1},
		bpf.RetConstant{Val: wire.TaggedLen},
	}, requests(guest)...)
}

// requests accepts, from the guest's MAC address only: ARP; UDP to port 67 over
// IPv4, unfragmented; router and neighbour solicitations; UDP to port 547 over
// IPv6. The last two without extension headers: no client sends any (RFC 6980
// forbids fragments), and walking them would be the guest's to prolong. What
// servers and routers send (ports 68 and 546, router advertisements) is accepted
// as well, to be counted.
func requests(guest mac.Addr) []bpf.Instruction {
	const (
		ip      = 14      // start of the IP header
		payload = ip + 40 // behind an IPv6 header
	)
	high := uint32(guest[0])<<24 | uint32(guest[1])<<16 | uint32(guest[2])<<8 | uint32(guest[3])
	low := uint32(guest[4])<<8 | uint32(guest[5])

	source := []bpf.Instruction{
		bpf.LoadAbsolute{Off: 6, Size: 4},
		bpf.JumpIf{Cond: bpf.JumpEqual, Val: high, SkipTrue: 1},
		bpf.RetConstant{Val: drop},
		bpf.LoadAbsolute{Off: 10, Size: 2},
		bpf.JumpIf{Cond: bpf.JumpEqual, Val: low, SkipTrue: 1},
		bpf.RetConstant{Val: drop},
	}
	dhcp4 := []bpf.Instruction{
		bpf.LoadAbsolute{Off: ip + 9, Size: 1},
		bpf.JumpIf{Cond: bpf.JumpEqual, Val: unix.IPPROTO_UDP, SkipTrue: 1},
		bpf.RetConstant{Val: drop},
		bpf.LoadAbsolute{Off: ip + 6, Size: 2},
		// More fragments to come, or not the first.
		bpf.JumpIf{Cond: bpf.JumpBitsNotSet, Val: 0x3fff, SkipTrue: 1},
		bpf.RetConstant{Val: drop},
		bpf.LoadMemShift{Off: ip},
		bpf.LoadIndirect{Off: ip + 2, Size: 2},
		bpf.JumpIf{Cond: bpf.JumpEqual, Val: 67, SkipTrue: 2},
		bpf.JumpIf{Cond: bpf.JumpEqual, Val: 68, SkipTrue: 1},
		bpf.RetConstant{Val: drop},
		bpf.RetConstant{Val: accept},
	}
	nd := []bpf.Instruction{
		bpf.LoadAbsolute{Off: payload, Size: 1},
		bpf.JumpIf{Cond: bpf.JumpEqual, Val: 133, SkipTrue: 3},
		bpf.JumpIf{Cond: bpf.JumpEqual, Val: 134, SkipTrue: 2},
		bpf.JumpIf{Cond: bpf.JumpEqual, Val: 135, SkipTrue: 1},
		bpf.RetConstant{Val: drop},
		bpf.RetConstant{Val: accept},
	}
	dhcp6 := []bpf.Instruction{
		bpf.JumpIf{Cond: bpf.JumpEqual, Val: unix.IPPROTO_UDP, SkipTrue: 1},
		bpf.RetConstant{Val: drop},
		bpf.LoadAbsolute{Off: payload + 2, Size: 2},
		bpf.JumpIf{Cond: bpf.JumpEqual, Val: 547, SkipTrue: 2},
		bpf.JumpIf{Cond: bpf.JumpEqual, Val: 546, SkipTrue: 1},
		bpf.RetConstant{Val: drop},
		bpf.RetConstant{Val: accept},
	}
	return slices.Concat(
		source,
		[]bpf.Instruction{
			bpf.LoadAbsolute{Off: 12, Size: 2},
			bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: unix.ETH_P_ARP, SkipTrue: 1},
			bpf.RetConstant{Val: accept},
			bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: unix.ETH_P_IP, SkipTrue: uint8(len(dhcp4))},
		},
		dhcp4,
		[]bpf.Instruction{
			bpf.JumpIf{Cond: bpf.JumpEqual, Val: unix.ETH_P_IPV6, SkipTrue: 1},
			bpf.RetConstant{Val: drop},
			bpf.LoadAbsolute{Off: ip + 6, Size: 1},
			bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: unix.IPPROTO_ICMPV6, SkipTrue: uint8(len(nd))},
		},
		nd,
		dhcp6,
	)
}
