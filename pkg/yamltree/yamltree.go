// Package yamltree reads one YAML document into a bounded tree of mappings,
// lists and scalars, each with its line. Scalars stay text: what a value means
// is for the reader of the tree to say. Anchors, aliases, tags and merge keys
// are refused, so the tree is never larger than the file.
package yamltree

import (
	"bytes"
	"errors"
	"fmt"

	"github.com/goccy/go-yaml/ast"
	"github.com/goccy/go-yaml/parser"
	"github.com/goccy/go-yaml/token"
)

// MaxSize is the longest document that is read, in bytes.
const MaxSize = 1 << 20

const (
	maxDepth = 16   // of nested mappings and lists
	maxLine  = 4096 // bytes
)

// Kind is what a node is.
type Kind uint8

// The kinds of nodes.
const (
	Null Kind = iota
	Scalar
	List
	Map
)

// String names the kind for a message.
func (k Kind) String() string {
	switch k {
	case Scalar:
		return "a value"
	case List:
		return "a list"
	case Map:
		return "a mapping"
	}
	return "nothing"
}

// Node is one value.
type Node struct {
	Line    int
	Kind    Kind
	Text    string  // of a Scalar, without quotes
	Items   []Node  // of a List
	Entries []Entry // of a Map, in the order of the file, each key once
}

// Entry is one key of a mapping and its value.
type Entry struct {
	Key   string
	Line  int
	Value Node
}

// Error says where a document can't be read, and why.
type Error struct {
	Line int // 0 when unknown
	Text string
}

// Error is "line 3: ...".
func (e *Error) Error() string {
	if e.Line == 0 {
		return e.Text
	}
	return fmt.Sprintf("line %d: %s", e.Line, e.Text)
}

// Parse reads one document. An empty one is Null. Every error is an *Error.
func Parse(b []byte) (Node, error) {
	if err := bounded(b); err != nil {
		return Node{}, err
	}
	f, err := parser.ParseBytes(b, 0)
	if err != nil {
		return Node{}, located(err)
	}
	var docs []ast.Node
	for _, d := range f.Docs {
		if d.Body != nil {
			docs = append(docs, d.Body)
		}
	}
	switch len(docs) {
	case 0:
		return Node{Line: 1}, nil
	case 1:
		return convert(docs[0], 0)
	}
	return Node{}, &Error{line(docs[1]), "a second document; a file holds one"}
}

// bounded refuses what would make the parser recurse deeply or take long.
func bounded(b []byte) error {
	if len(b) > MaxSize {
		return &Error{0, fmt.Sprintf("%d bytes; at most %d are read", len(b), MaxSize)}
	}
	n, open := 0, 0
	for l := range bytes.Lines(b) {
		n++
		if len(l) > maxLine {
			return &Error{n, fmt.Sprintf("the line has more than %d bytes", maxLine)}
		}
		blocks := 0
		for rest := bytes.TrimLeft(l, " \t"); len(rest) > 1 && (rest[0] == '-' || rest[0] == '?') && (rest[1] == ' ' || rest[1] == '\t'); rest = bytes.TrimLeft(rest[1:], " \t") {
			blocks++
		}
		for _, c := range l {
			switch c {
			case '[', '{':
				open++
			case ']', '}':
				open = max(0, open-1)
			}
		}
		if blocks > maxDepth || open > 4*maxDepth {
			return &Error{n, "nested too deeply"}
		}
	}
	return nil
}

// located takes message and line from an error of the parser, without the
// excerpt that it prints over several lines.
func located(err error) *Error {
	var e interface {
		GetToken() *token.Token
		GetMessage() string
	}
	if !errors.As(err, &e) {
		return &Error{0, err.Error()}
	}
	n := 0
	if t := e.GetToken(); t != nil && t.Position != nil {
		n = t.Position.Line
	}
	return &Error{n, e.GetMessage()}
}

func line(n ast.Node) int {
	if t := n.GetToken(); t != nil && t.Position != nil {
		return t.Position.Line
	}
	return 0
}

func convert(n ast.Node, depth int) (Node, error) {
	if depth > maxDepth {
		return Node{}, &Error{line(n), "nested too deeply"}
	}
	switch n := n.(type) {
	case *ast.NullNode:
		return Node{Line: line(n)}, nil
	case *ast.LiteralNode:
		return Node{Line: line(n), Kind: Scalar, Text: n.Value.Value}, nil
	case *ast.StringNode:
		return Node{Line: line(n), Kind: Scalar, Text: n.Value}, nil
	case *ast.MappingNode:
		out := Node{Line: line(n), Kind: Map}
		if len(n.Values) > 0 {
			out.Line = line(n.Values[0].Key)
		}
		for _, v := range n.Values {
			k, err := convert(v.Key, depth+1)
			if err != nil {
				return Node{}, err
			}
			if k.Kind != Scalar {
				return Node{}, &Error{line(v.Key), "a key that is not a word"}
			}
			val, err := convert(v.Value, depth+1)
			if err != nil {
				return Node{}, err
			}
			for _, e := range out.Entries {
				if e.Key == k.Text {
					return Node{}, &Error{k.Line, fmt.Sprintf("key %.40q is there twice, in line %d as well", k.Text, e.Line)}
				}
			}
			out.Entries = append(out.Entries, Entry{k.Text, k.Line, val})
			if len(out.Entries) > maxEntries {
				return Node{}, &Error{k.Line, fmt.Sprintf("a mapping with more than %d keys", maxEntries)}
			}
		}
		return out, nil
	case *ast.SequenceNode:
		out := Node{Line: line(n), Kind: List}
		for _, v := range n.Values {
			val, err := convert(v, depth+1)
			if err != nil {
				return Node{}, err
			}
			out.Items = append(out.Items, val)
		}
		return out, nil
	case *ast.AnchorNode, *ast.AliasNode, *ast.MergeKeyNode:
		return Node{}, &Error{line(n), "anchors, aliases and merge keys are not read; write the value out"}
	case *ast.TagNode, *ast.DirectiveNode, *ast.MappingKeyNode:
		return Node{}, &Error{line(n), "tags, directives and complex keys are not read; write a plain value"}
	case ast.ScalarNode: // numbers and booleans, as written
		return Node{Line: line(n), Kind: Scalar, Text: n.GetToken().Value}, nil
	}
	return Node{}, &Error{0, "not a mapping, list or value"}
}

// maxEntries bounds a mapping, so that looking for a key given twice stays cheap.
const maxEntries = 1024
