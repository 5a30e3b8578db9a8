package yamltree_test

import (
	"errors"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/slash32/slash32/pkg/yamltree"
)

func TestParse(t *testing.T) {
	got, err := yamltree.Parse([]byte(`# a comment
a: 007
b: [x, "y z"]
c:
  - mac: 52:54:00:00:00:01
    on: true
  - ~
d: |
  two
  lines
e:
`))
	if err != nil {
		t.Fatal(err)
	}
	s := func(line int, text string) yamltree.Node {
		return yamltree.Node{Line: line, Kind: yamltree.Scalar, Text: text}
	}
	want := yamltree.Node{Line: 2, Kind: yamltree.Map, Entries: []yamltree.Entry{
		{Key: "a", Line: 2, Value: s(2, "007")},
		{Key: "b", Line: 3, Value: yamltree.Node{Line: 3, Kind: yamltree.List, Items: []yamltree.Node{s(3, "x"), s(3, "y z")}}},
		{Key: "c", Line: 4, Value: yamltree.Node{Line: 5, Kind: yamltree.List, Items: []yamltree.Node{
			{Line: 5, Kind: yamltree.Map, Entries: []yamltree.Entry{
				{Key: "mac", Line: 5, Value: s(5, "52:54:00:00:00:01")},
				{Key: "on", Line: 6, Value: s(6, "true")},
			}},
			{Line: 7},
		}}},
		{Key: "d", Line: 8, Value: s(8, "two\nlines\n")},
		{Key: "e", Line: 11, Value: yamltree.Node{Line: 11}},
	}}
	if d := cmp.Diff(want, got); d != "" {
		t.Error(d)
	}
}

func TestParseRefuses(t *testing.T) {
	for _, tc := range []struct {
		name, in string
		line     int
	}{
		{"syntax", "a: 1\nb: [", 2},
		{"twice", "a: 1\nb: 2\na: 3\n", 3},
		{"alias bomb", "a: &a [x,x]\nb: &b [*a,*a]\n", 1},
		{"merge", "a:\n  <<: {b: c}\n", 2},
		{"tag", "a: !!binary aGk=\n", 1},
		{"two documents", "a: 1\n---\nb: 2\n", 3},
		{"deep flow", "a: " + strings.Repeat("[", 500) + strings.Repeat("]", 500), 1},
		{"deep blocks", strings.Repeat("- ", 500) + "x", 1},
		{"deep lines", deep(200), 0},
		{"long line", "a: " + strings.Repeat("x", 5000), 1},
		{"large", strings.Repeat("# nothing\n", 1<<17), 0},
		{"many keys", manyKeys(2000), 0},
	} {
		t.Run(tc.name, func(t *testing.T) {
			_, err := yamltree.Parse([]byte(tc.in))
			var e *yamltree.Error
			if !errors.As(err, &e) {
				t.Fatalf("got %v, want an *Error", err)
			}
			if tc.line != 0 && e.Line != tc.line {
				t.Errorf("line %d, want %d: %v", e.Line, tc.line, e)
			}
			if strings.Contains(e.Error(), "\n") {
				t.Errorf("more than one line: %q", e.Error())
			}
		})
	}
}

func deep(n int) string {
	var b strings.Builder
	for i := range n {
		b.WriteString(strings.Repeat(" ", i) + "a:\n")
	}
	return b.String()
}

func manyKeys(n int) string {
	var b strings.Builder
	for i := range n {
		b.WriteString("k" + strings.Repeat("x", i%50) + string(rune('a'+i%26)) + strings.Repeat("y", i/50) + ": 1\n")
	}
	return b.String()
}

func FuzzParse(f *testing.F) {
	for _, s := range []string{
		"", "a: 1\n", "- a\n- b: [c, {d: e}]\n", "a: &x 1\nb: *x\n", "? a\n: b\n", "%YAML 1.2\n---\na: |\n  x\n...\n",
		"\ta: 1", "a: 'b", "a: \"\\u0000\"", "!!map {a: b}", "<<: a", "a: >-\n  b\n\n  c\n",
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		n, err := yamltree.Parse(b)
		if err != nil {
			var e *yamltree.Error
			if !errors.As(err, &e) {
				t.Fatalf("%T: %v", err, err)
			}
			return
		}
		if got := count(n); got > len(b)+1 {
			t.Fatalf("%d nodes from %d bytes", got, len(b))
		}
	})
}

func count(n yamltree.Node) int {
	c := 1
	for _, i := range n.Items {
		c += count(i)
	}
	for _, e := range n.Entries {
		c += count(e.Value)
	}
	return c
}
