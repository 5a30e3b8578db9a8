package upstream

import (
	"bytes"
	"crypto/hmac"
	"crypto/md5" // the only algorithm that RFC 8415 §20.4 has
	"encoding/binary"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv6"
)

// The Reconfigure Key Authentication Protocol (RFC 8415 §20.4): a server hands out
// a key in its REPLY, and proves with it that a RECONFIGURE is its own.
const (
	protocolRKAP  = 3
	algorithmMD5  = 1
	methodCounter = 0
	typeKey       = 1
	typeHMAC      = 2
	keySize       = 16
	authSize      = 3 + 8 + 1 + keySize // the whole option's content
)

// keepKey remembers the key that an answer has, if it has one.
func (m *machine) keepKey(a answer) {
	if replay, value, ok := rkap(a.auth, typeKey); ok {
		m.key, m.replay = bytes.Clone(value), replay
	}
}

// rkap takes an authentication option apart.
func rkap(b []byte, kind byte) (replay uint64, value []byte, ok bool) {
	if len(b) != authSize || b[0] != protocolRKAP || b[1] != algorithmMD5 || b[2] != methodCounter || b[11] != kind {
		return 0, nil, false
	}
	return binary.BigEndian.Uint64(b[3:]), b[12:], true
}

// reconfigure renews or rebinds when the server whose key we have says so
// (§18.2.11). One without its proof, an old one, and one while something else is
// asked is nothing (§16.11).
func (m *machine) reconfigure(a answer, message []byte, now time.Time) bool {
	replay, sum, ok := rkap(a.auth, typeHMAC)
	if !ok || m.key == nil || replay <= m.replay || m.phase != bound || !bytes.Equal(a.server, m.server) {
		return false
	}
	at := bytes.Index(message, a.auth) // the option is there, once: its counter is new
	if at < 0 {
		return false
	}
	blank := bytes.Clone(message)
	clear(blank[at+authSize-keySize : at+authSize])
	h := hmac.New(md5.New, m.key)
	h.Write(blank)
	if !hmac.Equal(h.Sum(nil), sum) {
		return false
	}
	m.replay, m.dirty = replay, true
	switch a.reconfigure {
	case dhcpv6.MessageTypeRenew:
		m.start(renewing, dhcpv6.MessageTypeRenew, renewTiming, now)
	case dhcpv6.MessageTypeRebind:
		m.start(rebinding, dhcpv6.MessageTypeRebind, rebindTiming, now)
	default:
		return false
	}
	return true
}
