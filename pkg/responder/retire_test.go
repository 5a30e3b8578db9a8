package responder_test

import (
	"fmt"
	"net/netip"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/slash32/slash32/pkg/mac"
	"github.com/slash32/slash32/pkg/responder"
)

func TestRetire(t *testing.T) {
	slaac := func(net string, until int64) responder.Prefix {
		return responder.Prefix{Net: pfx(net), Mode: responder.ModeSLAAC, Until: until}
	}
	gone := func(net string, until int64) responder.Prefix {
		p := slaac(net, until)
		p.Deprecated = true
		return p
	}
	onLink, excluding := slaac("2001:db8:6::/64", 0), responder.Prefix{Net: pfx("2001:db8:7::/56"), Mode: responder.ModeDelegate, Exclude: pfx("2001:db8:7::/64")}
	onLink.OnLink = true
	onLinkGone := gone("2001:db8:6::/64", epoch.Unix()+7200)
	onLinkGone.OnLink = true
	now := epoch.Unix()
	var many, manyGone responder.Prefixes
	for i := range 10 {
		p := fmt.Sprintf("2001:db8:a%d::/64", i)
		many = append(many, gone(p, now+100-int64(i)))
		if i < 8 {
			manyGone = append(responder.Prefixes{gone(p, now+100-int64(i))}, manyGone...)
		}
	}
	type list = responder.Prefixes
	for name, c := range map[string]struct{ old, new, want list }{
		"nothing":              {nil, nil, nil},
		"first":                {nil, list{slaac("2001:db8:1::/64", 0)}, list{slaac("2001:db8:1::/64", 0)}},
		"the same":             {list{slaac("2001:db8:1::/64", 0)}, list{slaac("2001:db8:1::/64", 0)}, list{slaac("2001:db8:1::/64", 0)}},
		"taken away":           {list{slaac("2001:db8:1::/64", 0)}, nil, list{gone("2001:db8:1::/64", now+7200)}},
		"changed":              {list{slaac("2001:db8:1::/64", 0)}, list{slaac("2001:db8:2::/64", 0)}, list{slaac("2001:db8:2::/64", 0), gone("2001:db8:1::/64", now+7200)}},
		"still on its way":     {list{gone("2001:db8:1::/64", now+60)}, nil, list{gone("2001:db8:1::/64", now+60)}},
		"over":                 {list{gone("2001:db8:1::/64", now)}, nil, nil},
		"given anew":           {list{gone("2001:db8:1::/64", now+60)}, list{slaac("2001:db8:1::/64", 0)}, list{slaac("2001:db8:1::/64", 0)}},
		"would have ended":     {list{slaac("2001:db8:1::/64", now+60)}, nil, list{gone("2001:db8:1::/64", now+60)}},
		"deprecated by new":    {list{slaac("2001:db8:1::/64", 0)}, list{gone("2001:db8:1::/64", now+9)}, list{gone("2001:db8:1::/64", now+9)}},
		"deprecated for good":  {list{gone("2001:db8:1::/64", 0)}, nil, list{gone("2001:db8:1::/64", now+7200)}},
		"on the link":          {list{onLink}, nil, list{onLinkGone}},
		"what a pool excluded": {list{excluding}, nil, list{gone("2001:db8:7::/64", now+7200)}},
		"now excluded":         {list{slaac("2001:db8:7::/64", 0)}, list{excluding}, list{excluding}},
		"a pool is no matter":  {list{{Net: pfx("2001:db8:8::/56"), Mode: responder.ModeDelegate}}, nil, nil},
		"too many":             {many, nil, manyGone},
		"twice":                {list{slaac("2001:db8:1::/64", 0), gone("2001:db8:1::/64", now+60)}, nil, list{gone("2001:db8:1::/64", now+7200)}},
	} {
		binding := func(p list) responder.Binding {
			n := fullNIC()
			n.V6.Prefixes = p
			return responder.Binding{NICs: []responder.NIC{n}}
		}
		old, new := binding(c.old), binding(c.new)
		got := responder.Retire(old, new, epoch)
		equal := cmp.Comparer(func(a, b netip.Prefix) bool { return a == b })
		if d := cmp.Diff(c.want, got.NICs[0].V6.Prefixes, equal); d != "" {
			t.Errorf("%s (-want +got):\n%s", name, d)
		}
		if len(new.NICs[0].V6.Prefixes) != len(c.new) {
			t.Errorf("%s: the argument has changed", name)
		}
		// To write it again changes nothing, until there is something over.
		again := responder.Retire(got, new, epoch.Add(5*time.Second))
		if d := cmp.Diff(got.NICs[0].V6.Prefixes, again.NICs[0].V6.Prefixes, equal); d != "" {
			t.Errorf("%s: written again (-first +second):\n%s", name, d)
		}
		if last := responder.Retire(got, new, epoch.Add(2*time.Hour)); len(last.NICs[0].V6.Prefixes) != len(c.new) {
			t.Errorf("%s: after two hours there is %+v", name, last.NICs[0].V6.Prefixes)
		}
		if _, err := responder.Compile(got.NICs[0]); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		// Another machine's prefixes are not this one's.
		old.NICs[0].GuestMAC = mac.MustParse("52:54:00:ab:cd:77")
		if got := responder.Retire(old, new, epoch); len(got.NICs[0].V6.Prefixes) != len(c.new) {
			t.Errorf("%s: a new NIC has %+v", name, got.NICs[0].V6.Prefixes)
		}
	}
}
