package firewall_test

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/slash32/slash32/pkg/firewall"
)

// chain parses rules, a line each: "accept", "drop if in=br0", "jump user if in!=br0",
// "drop if unknown=1", "map in br0:jump:user br1:drop:".
func chain(name string, lines ...string) firewall.Chain {
	c := firewall.Chain{Family: "inet", Table: "filter", Name: name}
	fields := map[string]firewall.Field{"in": firewall.IIFName, "out": firewall.OIFName, "state": firewall.CTState, "unknown": firewall.Unknown}
	for _, line := range lines {
		var r firewall.Rule
		does, when, _ := strings.Cut(line, " if ")
		words := strings.Fields(does)
		if words[0] == "map" {
			r.Field = fields[words[1]]
			for _, w := range words[2:] {
				p := strings.Split(w, ":")
				r.Cases = append(r.Cases, firewall.Case{Key: []byte(p[0]), Verdict: firewall.Verdict(p[1]), Chain: p[2]})
			}
		} else if r.Verdict = firewall.Verdict(words[0]); len(words) > 1 {
			r.Chain = words[1]
		}
		for _, cond := range strings.Fields(when) {
			field, values, _ := strings.Cut(cond, "=")
			m := firewall.Match{}
			field, m.Negate = strings.CutSuffix(field, "!")
			m.Field = fields[field]
			for v := range strings.SplitSeq(values, ",") {
				m.Values = append(m.Values, []byte(v))
			}
			r.Matches = append(r.Matches, m)
		}
		c.Rules = append(c.Rules, r)
	}
	return c
}

func TestFate(t *testing.T) {
	const policy, accepted, dropped, depends = "the policy of chain FORWARD", "accepted", "dropped", "depends"
	for name, x := range map[string]struct {
		drop    bool // the policy
		forward []string
		user    []string
		partial bool
		want    string
		by      string
	}{
		"nothing":                        {want: accepted},
		"policy":                         {drop: true, want: dropped, by: policy},
		"accepted before the policy":     {drop: true, forward: []string{"accept if in=s32-web1"}, want: accepted},
		"another's":                      {drop: true, forward: []string{"accept if in=docker0"}, want: dropped, by: policy},
		"by prefix of the name":          {drop: true, forward: []string{"accept if in=s32-"}, want: accepted},
		"one of several":                 {drop: true, forward: []string{"accept if in=docker0,s32-web1"}, want: accepted},
		"not this one":                   {forward: []string{"drop if in!=s32-web1"}, want: accepted},
		"not another":                    {forward: []string{"drop if in!=docker0"}, want: dropped, by: "chain FORWARD"},
		"two conditions":                 {forward: []string{"drop if in=s32-web1 out=eth1"}, want: accepted},
		"what is not known":              {forward: []string{"drop if state=x"}, want: depends, by: "chain FORWARD"},
		"not known, and not this":        {forward: []string{"drop if state=x in=docker0"}, want: accepted},
		"what is not understood":         {forward: []string{"drop if unknown=1"}, want: depends, by: "chain FORWARD"},
		"first verdict":                  {forward: []string{"accept", "drop"}, want: accepted},
		"jump drops":                     {forward: []string{"jump user", "accept"}, user: []string{"drop"}, want: dropped, by: "chain user"},
		"jump comes back at its end":     {forward: []string{"jump user", "drop"}, user: []string{"accept if in=docker0"}, want: dropped, by: "chain FORWARD"},
		"jump comes back by return":      {forward: []string{"jump user", "drop"}, user: []string{"return", "accept"}, want: dropped, by: "chain FORWARD"},
		"jump that may come back":        {drop: true, forward: []string{"jump user"}, user: []string{"return if state=x", "accept"}, want: depends, by: policy},
		"goto does not come back":        {drop: true, forward: []string{"goto user", "accept"}, user: []string{"return"}, want: dropped, by: policy},
		"return of a base chain":         {drop: true, forward: []string{"return", "accept"}, want: dropped, by: policy},
		"possible jump":                  {forward: []string{"jump user if state=x"}, user: []string{"drop"}, want: depends, by: "chain user"},
		"map":                            {forward: []string{"map in docker0:accept: s32-web1:jump:user", "accept"}, user: []string{"drop"}, want: dropped, by: "chain user"},
		"map without this":               {forward: []string{"map in docker0:drop:"}, want: accepted},
		"map of what is not known":       {forward: []string{"map state x:drop: y:accept:"}, want: depends, by: "chain FORWARD"},
		"a queue":                        {forward: []string{"other"}, want: depends},
		"a chain that is not there":      {drop: true, forward: []string{"jump gone"}, want: depends, by: policy},
		"not all rules are known":        {partial: true, want: depends},
		"a chain that jumps to itself":   {forward: []string{"jump user"}, user: []string{"jump user"}, want: depends},
		"two that jump, twice at a time": {forward: []string{"jump user", "jump user"}, user: []string{"jump user if state=x", "jump user if state=y"}, want: depends},
	} {
		t.Run(name, func(t *testing.T) {
			base := chain("FORWARD", x.forward...)
			base.Forward, base.Drop = true, x.drop
			other := chain("user", "drop")
			other.Table = "another"
			s := firewall.Ruleset{Chains: []firewall.Chain{base, chain("user", x.user...), other}, Partial: x.partial}
			got := s.Fate(base, firewall.Packet{firewall.IIFName: []byte("s32-web1"), firewall.OIFName: []byte("eth0")})
			want := firewall.Fate{Accepted: x.want != dropped, Dropped: x.want != accepted, By: x.by}
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("-want +got\n%s", diff)
			}
		})
	}
}

// TestMask: a match compares what its mask covers.
func TestMask(t *testing.T) {
	base := firewall.Chain{Name: "FORWARD", Rules: []firewall.Rule{{
		Matches: []firewall.Match{{Field: firewall.Source, Mask: []byte{255, 0xf0, 0, 0}, Values: [][]byte{{10, 0x30, 0, 0}}}},
		Verdict: firewall.Drop,
	}}}
	s := firewall.Ruleset{Chains: []firewall.Chain{base}}
	for source, dropped := range map[[4]byte]bool{{10, 0x3f, 1, 2}: true, {10, 0x40, 0, 0}: false} {
		if got := s.Fate(base, firewall.Packet{firewall.Source: source[:]}); got.Dropped != dropped || got.Accepted == dropped {
			t.Errorf("%v: %+v, want it dropped: %v", source, got, dropped)
		}
	}
}
