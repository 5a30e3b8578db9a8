package vmlink

import (
	"encoding/hex"
	"encoding/json"
	"fmt"
	"strconv"
	"time"

	"github.com/slash32/slash32/pkg/responder"
)

// statusWriter writes control.Responder as JSON. The fixed parts are encoded
// once; the rest is numbers, names of verdicts and times, which are appended
// without the garbage of encoding/json: status is asked for as long as the VM
// lives.
type statusWriter struct {
	head string   // up to and with the binding's opening quote
	nics []string // of each NIC, up to and with the verdicts' opening brace
	last [responder.History]responder.Exchange
}

func newStatusWriter(pid int, version string, since time.Time, nics []nic) (statusWriter, error) {
	var w statusWriter
	v, err := json.Marshal(version)
	if err != nil {
		return w, fmt.Errorf("encode the version: %w", err)
	}
	w.head = `"pid":` + strconv.Itoa(pid) + `,"version":` + string(v) + `,"since":"` + since.UTC().Format(time.RFC3339Nano) + `","binding":"`
	for _, n := range nics {
		b, err := json.Marshal(n.key.bridge)
		if err != nil {
			return w, fmt.Errorf("encode a bridge's name: %w", err)
		}
		w.nics = append(w.nics, `{"bridge":`+string(b)+`,"verdicts":{`)
	}
	return w, nil
}

// append appends the state to b. hash is of the binding in use.
func (w *statusWriter) append(b []byte, up bool, hash []byte, nics []nic) []byte {
	b = append(b, `{"up":`...)
	b = strconv.AppendBool(b, up)
	b = append(b, ',')
	b = append(b, w.head...)
	b = hex.AppendEncode(b, hash)
	b = append(b, `","nics":[`...)
	for i, n := range nics {
		b = append(comma(b), w.nics[i]...)
		c := n.server.Counters()
		for v, count := range c.Verdicts {
			b = appendCount(b, responder.Verdict(v).String(), count)
		}
		b = appendCount(b, "rate_limited", c.RateLimited)
		b = appendCount(b, "send_failed", c.SendFailed)
		b = appendCount(b, "panic", c.Panics)
		b = append(b, `},"last":[`...)
		for _, e := range n.server.Last(w.last[:0]) {
			b = append(comma(b), `{"at":"`...)
			b = e.At.UTC().AppendFormat(b, time.RFC3339Nano)
			b = append(b, `","verdict":"`...)
			b = append(b, e.Verdict.String()...)
			b = append(b, `"}`...)
		}
		b = append(b, ']')
		g, l := n.server.Guest()
		if g.Profile != responder.ProfileUnknown {
			b = appendClient(b, &g, l)
		}
		b = appendDelegated(b, &g, time.Now())
		b = append(b, '}')
	}
	return append(b, "]}"...)
}

// appendClient appends the member "client". Nothing in it needs an escape: Vendor
// has seen to it.
func appendClient(b []byte, g *responder.Guest, l *responder.Link) []byte {
	b = append(b, `,"client":{"profile":"`...)
	b = append(b, g.Profile.String()...)
	b = append(b, `","lease":"`...)
	b = append(b, l.Lease(g.Profile)...)
	b = append(b, `","vendor":"`...)
	b = append(b, g.Vendor()...)
	b = append(b, '"')
	for _, flag := range [...]struct {
		name string
		set  bool
	}{
		{"forced", l.Forced() != responder.ProfileUnknown},
		{"firmware", g.Firmware},
		{"booted", l.Booted(g)},
	} {
		if flag.set {
			b = append(append(append(b, `,"`...), flag.name...), `":true`...)
		}
	}
	return append(b, '}')
}

// appendDelegated appends the member "delegated" if there is something in it.
func appendDelegated(b []byte, g *responder.Guest, now time.Time) []byte {
	some := false
	for _, p := range g.Prefixes {
		if !p.Prefix.IsValid() || p.Expires <= now.Unix() {
			continue
		}
		if !some {
			b, some = append(b, `,"delegated":[`...), true
		}
		b = p.Prefix.AppendTo(append(comma(b), `{"prefix":"`...))
		b = p.Via.AppendTo(append(b, `","via":"`...))
		b = strconv.AppendUint(append(b, `","iaid":`...), uint64(p.IAID), 10)
		b = time.Unix(p.Expires, 0).UTC().AppendFormat(append(b, `,"expires":"`...), time.RFC3339)
		b = append(b, `"}`...)
	}
	if some {
		b = append(b, ']')
	}
	return b
}

// appendCount appends a member of the verdicts if it counted anything. name
// needs no escape.
func appendCount(b []byte, name string, count uint64) []byte {
	if count == 0 {
		return b
	}
	b = append(comma(b), '"')
	b = append(b, name...)
	b = append(b, `":`...)
	return strconv.AppendUint(b, count, 10)
}

// comma appends a comma unless a list or object has just been opened.
func comma(b []byte) []byte {
	switch b[len(b)-1] {
	case '[', '{':
		return b
	}
	return append(b, ',')
}
