package main

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestCounter(t *testing.T) {
	const stream = `{"Action":"start","Package":"p"}
{"Action":"run","Package":"p","Test":"TestA"}
{"Action":"output","Package":"p","Test":"TestA","Output":"quiet\n"}
{"Action":"pass","Package":"p","Test":"TestA","Elapsed":0.1}
{"Action":"output","Package":"p","Test":"TestB","Output":"=== RUN   TestB\n"}
{"Action":"output","Package":"p","Test":"TestB","Output":"    b_test.go:3: wrong\n"}
{"Action":"fail","Package":"p","Test":"TestB","Elapsed":0.1}
{"Action":"output","Package":"p","Test":"TestC","Output":"    c_test.go:9: no kernel\n"}
{"Action":"output","Package":"p","Test":"TestC","Output":"--- SKIP: TestC (0.00s)\n"}
{"Action":"skip","Package":"p","Test":"TestC"}
{"Action":"fail","Package":"p","Elapsed":1.5}
{"Action":"build-output","ImportPath":"q","Output":"q.go:1: syntax error\n"}
{"Action":"fail","Package":"q","Elapsed":0,"FailedBuild":"q"}
{"Action":"output","Package":"r","Test":"TestD","Output":"panic: boom\n"}
{"Action":"fail","Package":"r","Elapsed":0.2}
{"Action":"pass","Package":"s","Elapsed":2}
no json
`
	var out strings.Builder
	c := newCounter(&out)
	if err := c.read(strings.NewReader(stream)); err != nil {
		t.Fatal(err)
	}
	want := `FAIL  p TestB
=== RUN   TestB
    b_test.go:3: wrong
FAIL      1.5s  p
q.go:1: syntax error
FAIL      0.0s  q
FAIL      0.2s  r
panic: boom
ok        2.0s  s
no json
`
	if diff := cmp.Diff(want, out.String()); diff != "" {
		t.Error(diff)
	}
	if diff := cmp.Diff([]string{"p TestC: c_test.go:9: no kernel"}, c.skips); diff != "" {
		t.Error(diff)
	}
	if c.passed != 1 || c.failed != 3 {
		t.Errorf("%d passed, %d failed", c.passed, c.failed)
	}
}
