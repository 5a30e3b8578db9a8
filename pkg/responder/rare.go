package responder

import (
	"bytes"
	"encoding/json"
)

// What few VMs have is encoded by methods of its own: package json prepares for
// every type that it can see in a binding, which would cost each responder some
// 40 KiB for the rest of its life.

// Boots are boot files.
type Boots []Boot

// MarshalJSON implements json.Marshaler.
func (b Boots) MarshalJSON() ([]byte, error) { return json.Marshal([]Boot(b)) }

// UnmarshalJSON implements json.Unmarshaler.
func (b *Boots) UnmarshalJSON(text []byte) error { return strict(text, (*[]Boot)(b)) }

// Options are options of the annotation.
type Options []Option

// MarshalJSON implements json.Marshaler.
func (o Options) MarshalJSON() ([]byte, error) { return json.Marshal([]Option(o)) }

// UnmarshalJSON implements json.Unmarshaler.
func (o *Options) UnmarshalJSON(text []byte) error { return strict(text, (*[]Option)(o)) }

// Prefixes are prefixes of the guest's.
type Prefixes []Prefix

// MarshalJSON implements json.Marshaler.
func (p Prefixes) MarshalJSON() ([]byte, error) { return json.Marshal([]Prefix(p)) }

// UnmarshalJSON implements json.Unmarshaler.
func (p *Prefixes) UnmarshalJSON(text []byte) error { return strict(text, (*[]Prefix)(p)) }

// Terms are when addresses end.
type Terms []Term

// MarshalJSON implements json.Marshaler.
func (t Terms) MarshalJSON() ([]byte, error) { return json.Marshal([]Term(t)) }

// UnmarshalJSON implements json.Unmarshaler.
func (t *Terms) UnmarshalJSON(text []byte) error { return strict(text, (*[]Term)(t)) }

type plainRelay Relay

// MarshalJSON implements json.Marshaler.
func (r *Relay) MarshalJSON() ([]byte, error) { return json.Marshal((*plainRelay)(r)) }

// UnmarshalJSON implements json.Unmarshaler.
func (r *Relay) UnmarshalJSON(text []byte) error { return strict(text, (*plainRelay)(r)) }

// strict refuses what it does not know, as the rest of a binding is read.
func strict(text []byte, v any) error {
	d := json.NewDecoder(bytes.NewReader(text))
	d.DisallowUnknownFields()
	return d.Decode(v)
}
