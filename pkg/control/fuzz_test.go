package control

import (
	"bufio"
	"bytes"
	"errors"
	"io"
	"testing"
)

// FuzzReadRequest holds that any bytes end in requests, one refusal or the end,
// within the bound.
func FuzzReadRequest(f *testing.F) {
	for _, s := range []string{
		"{\"op\":\"status\"}\n", "{\"op\":\"show\",\"vm\":\"web1\"}\n{\"op\":\"sync\"}", "{}\n", "\n\n\n", "", "[1]\n",
		"{\"op\":1}\n", "{\"op\":\"\xff\"}\n", "{\"op\":\"a\"}{\"op\":\"b\"}\n", "null\n", "{\"OP\":\"status\"}\r\n",
	} {
		f.Add([]byte(s))
	}
	f.Add(bytes.Repeat([]byte{'['}, MaxRequest+1))
	f.Add(append(bytes.Repeat([]byte{' '}, MaxRequest), '\n'))
	f.Fuzz(func(t *testing.T, b []byte) {
		r := bufio.NewReader(bytes.NewReader(b))
		for range len(b) + 1 {
			req, err := readRequest(r)
			var bad badRequest
			switch {
			case err == nil:
				if req.Op == "" {
					t.Fatal("a request without an op")
				}
			case errors.Is(err, io.EOF), errors.As(err, &bad):
				if len(bad) > 1024 {
					t.Fatalf("a refusal of %d bytes", len(bad))
				}
				return
			default:
				t.Fatal(err)
			}
		}
		t.Fatal("more requests than bytes")
	})
}
