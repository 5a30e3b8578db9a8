package evidence

import (
	"encoding/binary"
	"fmt"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// What golang.org/x/sys/unix lacks of linux/netfilter/nfnetlink_log.h. The
// messages are read here: the library for it takes those of ARP for something
// else, and its goroutine cannot be waited for.
const (
	messageConfig = 1 // NFULNL_MSG_CONFIG
	configCommand = 1 // NFULA_CFG_CMD
	configMode    = 2 // NFULA_CFG_MODE
	commandBind   = 1 // NFULNL_CFG_CMD_BIND
	copyPacket    = 2 // NFULNL_COPY_PACKET
	configThresh  = 5 // NFULA_CFG_QTHRESH

	attrPacketHeader = 1  // NFULA_PACKET_HDR: EtherType, hook
	attrInDev        = 4  // NFULA_IFINDEX_INDEV
	attrPayload      = 9  // NFULA_PAYLOAD
	attrPrefix       = 10 // NFULA_PREFIX
	attrLinkHeader   = 16 // NFULA_HWHEADER

	subsystem    = unix.NFNL_SUBSYS_ULOG << 8
	headerLength = 4 // struct nfgenmsg
	packetBytes  = 128
)

// subscribe opens a socket that gets the packets of one group, in the network
// namespace of the calling thread.
func subscribe(group uint16) (*netlink.Conn, error) {
	c, err := netlink.Dial(unix.NETLINK_NETFILTER, nil)
	if err != nil {
		return nil, fmt.Errorf("open a netlink socket: %w", err)
	}
	if err := bind(c, group); err != nil {
		_ = c.Close()
		return nil, fmt.Errorf("listen to group %d: %w", group, err)
	}
	return c, nil
}

// bind asks for the group and waits for the answer. Packets may come before it, which
// is why this is not Execute: they are left out.
func bind(c *netlink.Conn, group uint16) error {
	mode := binary.BigEndian.AppendUint32(nil, packetBytes)
	b, err := netlink.MarshalAttributes([]netlink.Attribute{
		{Type: configCommand, Data: []byte{commandBind}},
		{Type: configMode, Data: append(mode, copyPacket, 0)},
		{Type: configThresh, Data: binary.BigEndian.AppendUint32(nil, 1)}, // each at once
	})
	if err != nil {
		return err
	}
	header := binary.BigEndian.AppendUint16([]byte{unix.AF_UNSPEC, unix.NFNETLINK_V0}, group)
	sent, err := c.Send(netlink.Message{
		Header: netlink.Header{Type: subsystem | messageConfig, Flags: netlink.Request | netlink.Acknowledge},
		Data:   append(header, b...),
	})
	if err != nil {
		return err
	}
	for {
		got, err := c.Receive()
		if err != nil {
			return err
		}
		for _, m := range got {
			if m.Header.Type == netlink.Error && m.Header.Sequence == sent.Header.Sequence {
				return nil
			}
		}
	}
}

// sample is one packet as the kernel tells of it.
type sample struct {
	link   int    // index of the interface that it came in by
	reason string // the prefix of the rule
	Packet
}

// parse reads one message.
func parse(b []byte) (s sample, ok bool) {
	if len(b) < headerLength {
		return s, false
	}
	d, err := netlink.NewAttributeDecoder(b[headerLength:])
	if err != nil {
		return s, false
	}
	d.ByteOrder = binary.BigEndian
	for d.Next() {
		switch d.Type() {
		case attrPacketHeader:
			if x := d.Bytes(); len(x) >= 2 {
				s.Protocol = binary.BigEndian.Uint16(x)
			}
		case attrInDev:
			s.link = int(d.Uint32())
		case attrPayload:
			s.Data = d.Bytes()
		case attrPrefix:
			s.reason = d.String()
		case attrLinkHeader:
			s.Header = d.Bytes()
		}
	}
	return s, d.Err() == nil && s.link != 0 && s.reason != ""
}
