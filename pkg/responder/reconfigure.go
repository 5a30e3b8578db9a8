package responder

import (
	"crypto/hmac"
	"crypto/md5" // the only algorithm that RFC 8415 §20.4 has
	"encoding/binary"
	"net/netip"
	"slices"
	"time"

	"github.com/slash32/slash32/pkg/marks"
	"github.com/slash32/slash32/pkg/wire"
)

// The Reconfigure Key Authentication Protocol (RFC 8415 §20.4): a client that
// accepts a RECONFIGURE is given a key with its REPLY, by which it knows ours.
const (
	authRKAP    = 3
	authHMACMD5 = 1
	authCounter = 0 // replay detection by a number that grows
	authKey     = 1
	authDigest  = 2

	authLen   = 3 + 8 + 1 + md5.Size // the option's data
	acceptLen = 4 + 4 + authLen      // with option 20
)

// Retransmission of RECONFIGURE (RFC 8415 §7.6).
const (
	reconfigureWait  = 2 * time.Second // REC_TIMEOUT, doubled each time
	reconfigureTries = 8               // REC_MAX_RC
)

// accepts6 is the client that accepts a RECONFIGURE.
type accepts6 struct {
	key   [md5.Size]byte // all zero: none is ever sent
	addr  [16]byte       // all zero: there is no such client
	duid  [maxDUID]byte
	duidN uint8
}

// appendAccept6 says that a RECONFIGURE may come, to who accepts one, and notes
// him. Of the messages that begin a binding, those without option 20 are of a
// client that accepts none any more.
func (l *Link) appendAccept6(b []byte, g *Guest, now time.Time, r *request6, dst netip.Addr, v Verdict) []byte {
	if g.accepts.key == [md5.Size]byte{} {
		return b
	}
	switch v {
	case DHCP6Advertise:
		if r.accepts && len(b)+4 <= l.limit {
			b = append(b, 0, wire.Opt6ReconfigureAccept, 0, 0)
		}
		return b
	case DHCP6Request, DHCP6RapidReply:
		g.accepts = accepts6{key: g.accepts.key}
	case DHCP6Renew, DHCP6Rebind, DHCP6Information:
	default:
		return b
	}
	if !r.accepts || r.clientID == nil || len(b)+acceptLen > l.limit {
		return b
	}
	g.accepts.addr = dst.As16()
	g.accepts.duidN = uint8(copy(g.accepts.duid[:], r.clientID))
	b = append(b, 0, wire.Opt6ReconfigureAccept, 0, 0)
	return appendAuth(b, now, authKey, g.accepts.key)
}

func appendAuth(b []byte, now time.Time, kind uint8, value [md5.Size]byte) []byte {
	b = append(b, 0, wire.Opt6Auth, 0, authLen, authRKAP, authHMACMD5, authCounter)
	b = binary.BigEndian.AppendUint64(b, uint64(now.UnixNano()))
	return append(append(b, kind), value[:]...)
}

// reconfigure writes the RECONFIGURE that makes the guest renew (RFC 8415
// §18.3.11), or returns nil when it accepts none.
func (l *Link) reconfigure(a *accepts6, now time.Time, out []byte) []byte {
	if a.addr == [16]byte{} || !l.v6 || l.relays6() {
		return nil
	}
	b := append(out[:0], l.dhcp6.head...)
	copy(b[offIPv6Dst:], a.addr[:])
	b = wire.AppendDHCP6(b, wire.DHCP6{Type: wire.DHCP6Reconfigure})
	b = wire.AppendOption6(b, wire.Opt6ClientID, a.duid[:a.duidN])
	b = wire.AppendOption6(b, wire.Opt6ServerID, []byte(marks.ServerDUID))
	b = wire.AppendOption6(b, wire.Opt6ReconfigureMessage, []byte{wire.DHCP6Renew})
	b = appendAuth(b, now, authDigest, [md5.Size]byte{})
	h := hmac.New(md5.New, a.key[:])
	_, _ = h.Write(b[offDHCP6:])
	copy(b[len(b)-md5.Size:], h.Sum(nil))
	return finish6(b)
}

// finish6 writes the lengths and the checksum of a DHCPv6 frame.
func finish6(b []byte) []byte {
	n := uint16(len(b) - offUDP6)
	binary.BigEndian.PutUint16(b[offIPv6Len:], n)
	binary.BigEndian.PutUint16(b[offUDP6+4:], n)
	wire.SetUDPChecksum(b[offIPv6Src:offUDP6], b[offUDP6:])
	return b
}

// moves tells whether a guest that has leases of old has others now.
func (l *Link) moves(old *Link) bool {
	return !slices.EqualFunc(l.dhcp6.addrs, old.dhcp6.addrs, func(a, b addr6) bool { return a.addr == b.addr && a.old == b.old }) || !slices.EqualFunc(l.prefixes.list(), old.prefixes.list(), func(a, b pool6) bool {
		return a.net == b.net && a.exclude == b.exclude && a.deprecated == b.deprecated
	})
}

// renewal is a guest that is asked to renew.
type renewal struct {
	since uint64 // what the guest had renewed when it began
	tries int
}

// renewed counts what a RECONFIGURE is answered by.
func (s *Server) renewed() uint64 {
	return s.verdicts[DHCP6Renew].Load() + s.verdicts[DHCP6Rebind].Load()
}

// next sends a RECONFIGURE and returns how long to wait for what comes of it; 0
// when there is nothing more to do.
func (r *renewal) next(s *Server, out []byte) time.Duration {
	if r.tries >= reconfigureTries || s.renewed() != r.since {
		return 0
	}
	s.state.Lock()
	accepts := s.guest.accepts
	s.state.Unlock()
	frame := s.link.Load().reconfigure(&accepts, time.Now(), out)
	if frame == nil {
		return 0
	}
	s.send(frame)
	r.tries++
	return reconfigureWait << (r.tries - 1)
}
