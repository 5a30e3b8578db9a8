package problem_test

import (
	"strings"
	"testing"

	"github.com/slash32/slash32/pkg/problem"
)

func TestString(t *testing.T) {
	for _, c := range []struct {
		p    problem.Problem
		want string
	}{
		{problem.Problem{Code: problem.EAddressInUse, VM: "web2", Line: 5, What: "address 203.0.113.42 belongs to web1", Fix: "give web2 another"},
			"web2: E101 line 5: address 203.0.113.42 belongs to web1. Fix: give web2 another"},
		{problem.Problem{Code: problem.EConfig, File: "/etc/slash32/slash32.yaml", Line: 3, What: "unknown key \"upling\""},
			"E112 /etc/slash32/slash32.yaml:3: unknown key \"upling\""},
		{problem.Problem{Code: problem.EXML, What: "a\nb\x1b[31m\u2028\u009b"}, `E100 a\nb\x1b[31m\u2028\u009b`},
	} {
		if got := c.p.String(); got != c.want {
			t.Errorf("got  %s\nwant %s", got, c.want)
		}
	}
	long := problem.Problem{Code: problem.EXML, What: strings.Repeat("x", 5000)}.String()
	if len(long) > 1100 || !strings.HasSuffix(long, "…") {
		t.Errorf("%d bytes", len(long))
	}
}

func TestList(t *testing.T) {
	l := problem.List{{Code: problem.WUplink, What: "w"}, {Code: problem.EXML, VM: "a", What: "e"}}
	if f := l.Fatal(); len(f) != 1 || f[0].Code != problem.EXML {
		t.Error(f)
	}
	if got := l.WithVM("web").Error(); got != "web: W208 w; a: E100 e" {
		t.Error(got)
	}
	if l[0].VM != "" {
		t.Error("WithVM changed its receiver")
	}
}
