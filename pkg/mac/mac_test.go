package mac_test

import (
	"encoding/json"
	"strings"
	"testing"

	"github.com/slash32/slash32/pkg/mac"
)

func TestParse(t *testing.T) {
	for _, c := range []struct{ in, want string }{
		{"52:54:00:ab:cd:01", "52:54:00:ab:cd:01"},
		{"52:54:00:AB:CD:01", "52:54:00:ab:cd:01"},
		{"", ""}, {"52-54-00-ab-cd-01", ""}, {"52:54:00:ab:cd", ""}, {"52:54:00:ab:cd:0g", ""},
		{"52:54:00:ab:cd:01:02", ""}, {"525400abcd01", ""}, {"52:54:00:ab:cd: 1", ""},
	} {
		a, err := mac.Parse(c.in)
		if (err == nil) != (c.want != "") || a.String() != c.want {
			t.Errorf("Parse(%q) = %v, %v; want %q", c.in, a, err, c.want)
		}
	}
}

func TestKinds(t *testing.T) {
	if !mac.Broadcast.IsMulticast() || mac.MustParse("52:54:00:00:00:01").IsMulticast() || !mac.MustParse("33:33:00:00:00:01").IsMulticast() {
		t.Error("IsMulticast")
	}
	if !(mac.Addr{}).IsZero() || mac.Broadcast.IsZero() {
		t.Error("IsZero")
	}
}

func TestJSON(t *testing.T) {
	type v struct{ A, B mac.Addr }
	in := v{A: mac.MustParse("52:54:00:ab:cd:01")}
	b, err := json.Marshal(in)
	if err != nil || string(b) != `{"A":"52:54:00:ab:cd:01","B":""}` {
		t.Fatalf("%s, %v", b, err)
	}
	var out v
	if err := json.Unmarshal(b, &out); err != nil || out != in {
		t.Fatalf("%+v, %v", out, err)
	}
	if err := json.Unmarshal([]byte(`{"A":"nonsense"}`), &out); err == nil || !strings.Contains(err.Error(), "nonsense") {
		t.Fatal(err)
	}
}

func FuzzParse(f *testing.F) {
	for _, s := range []string{"52:54:00:ab:cd:01", "FF:ff:ff:ff:ff:ff", "", "::::::::::::::::::"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		a, err := mac.Parse(s)
		if err != nil || a.IsZero() {
			return
		}
		if !strings.EqualFold(a.String(), s) {
			t.Fatalf("Parse(%q) gives %v", s, a)
		}
	})
}

func TestLinkLocal(t *testing.T) {
	for in, want := range map[string]string{
		"52:54:00:ab:cd:01": "fe80::5054:ff:feab:cd01",
		"02:73:6c:33:32:01": "fe80::73:6cff:fe33:3201",
	} {
		if got := mac.MustParse(in).LinkLocal(); got.String() != want {
			t.Errorf("%s: %s, want %s", in, got, want)
		}
	}
}
