// Program quicgo is quic-go's end in the interop tests, client and server.
//
// It reads commands as lines of JSON from its standard input, runs each in a goroutine
// of its own, and writes one line for each to its standard output: the command's id
// with what it found, or with "error". The end of the input ends the program at once,
// without a word to the peers.
//
// Every bidirectional stream that a peer opens is echoed until its end.
package main

import (
	"bufio"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"os"
	"sync"
	"time"

	"github.com/quic-go/quic-go"
)

const patience = 60 * time.Second

// command is one line of input; each verb uses the fields that it needs.
type command struct {
	ID int    `json:"id"`
	Do string `json:"do"`

	// listen and dial.
	Address  string   `json:"address"`
	CID      int      `json:"cid"`
	Versions []uint32 `json:"versions"`
	ALPN     string   `json:"alpn"`

	// listen.
	Retry    bool   `json:"retry"`
	ResetKey string `json:"reset_key"`
	Padding  int    `json:"padding"`

	// dial.
	Early bool `json:"early"`

	// What is said on or about a connection.
	Conn   int    `json:"conn"`
	Size   int    `json:"size"`
	Count  int    `json:"count"`
	Code   uint64 `json:"code"`
	Reason string `json:"reason"`
}

type result map[string]any

type program struct {
	mutex    sync.Mutex
	conns    []*quic.Conn
	accepted chan int
	sessions tls.ClientSessionCache
	tokens   *tokens
}

// tokens keeps those that came for later connections, and tells when one comes.
type tokens struct {
	quic.TokenStore
	came chan struct{}
}

func (t *tokens) Put(key string, token *quic.ClientToken) {
	t.TokenStore.Put(key, token)
	select {
	case t.came <- struct{}{}:
	default:
	}
}

func main() {
	p := &program{
		accepted: make(chan int, 1000),
		sessions: tls.NewLRUClientSessionCache(10),
		tokens:   &tokens{quic.NewLRUTokenStore(10, 10), make(chan struct{}, 1)},
	}
	var output sync.Mutex
	lines := bufio.NewScanner(os.Stdin)
	for lines.Scan() {
		var c command
		if err := json.Unmarshal(lines.Bytes(), &c); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(2)
		}
		go func() {
			found, err := p.run(c)
			if err != nil {
				found = result{"error": err.Error(), "end": describe(err)}
			}
			if found == nil {
				found = result{}
			}
			found["id"] = c.ID
			line, _ := json.Marshal(found)
			output.Lock()
			defer output.Unlock()
			fmt.Println(string(line))
		}()
	}
}

func (p *program) run(c command) (result, error) {
	switch c.Do {
	case "listen":
		return p.listen(c)
	case "dial":
		return p.dial(c)
	case "accept":
		select {
		case number := <-p.accepted:
			return result{"conn": number}, nil
		case <-time.After(patience):
			return nil, errors.New("nobody came")
		}
	}
	p.mutex.Lock()
	conn := p.conns[c.Conn]
	p.mutex.Unlock()
	switch c.Do {
	case "echo":
		return nil, echoes(conn, c.Size, c.Count)
	case "state":
		return state(conn), nil
	case "token":
		select {
		case <-p.tokens.came:
			return nil, nil
		case <-time.After(patience):
			return nil, errors.New("no token came")
		}
	case "migrate":
		return nil, migrate(conn, c.CID)
	case "close":
		return nil, conn.CloseWithError(quic.ApplicationErrorCode(c.Code), c.Reason)
	case "ended":
		select {
		case <-conn.Context().Done():
			return describe(context.Cause(conn.Context())), nil
		case <-time.After(patience):
			return nil, errors.New("it goes on")
		}
	}
	return nil, fmt.Errorf("no such command: %q", c.Do)
}

func (p *program) keep(conn *quic.Conn) int {
	p.mutex.Lock()
	defer p.mutex.Unlock()
	p.conns = append(p.conns, conn)
	return len(p.conns) - 1
}

func config(c command) *quic.Config {
	made := &quic.Config{
		HandshakeIdleTimeout: patience / 2,
		MaxIdleTimeout:       patience,
		Allow0RTT:            true,
	}
	for _, version := range c.Versions {
		made.Versions = append(made.Versions, quic.Version(version))
	}
	return made
}

func protocol(c command) []string {
	if c.ALPN == "" {
		return []string{"btlightning"}
	}
	return []string{c.ALPN}
}

func open(address string) (*net.UDPConn, error) {
	local, err := net.ResolveUDPAddr("udp4", address)
	if err != nil {
		return nil, err
	}
	return net.ListenUDP("udp4", local)
}

func (p *program) listen(c command) (result, error) {
	socket, err := open(c.Address)
	if err != nil {
		return nil, err
	}
	certificate, err := identity(c.Padding)
	if err != nil {
		return nil, err
	}
	transport := &quic.Transport{Conn: socket, ConnectionIDLength: c.CID}
	if c.Retry {
		transport.VerifySourceAddress = func(net.Addr) bool { return true }
	}
	if c.ResetKey != "" {
		raw, err := hex.DecodeString(c.ResetKey)
		if err != nil {
			return nil, err
		}
		key := quic.StatelessResetKey(raw)
		transport.StatelessResetKey = &key
	}
	listener, err := transport.ListenEarly(&tls.Config{
		Certificates: []tls.Certificate{certificate},
		NextProtos:   protocol(c),
	}, config(c))
	if err != nil {
		return nil, err
	}
	go func() {
		for {
			conn, err := listener.Accept(context.Background())
			if err != nil {
				return
			}
			p.accepted <- p.keep(conn)
			go serve(conn)
		}
	}()
	return result{"port": socket.LocalAddr().(*net.UDPAddr).Port}, nil
}

// identity makes a self-signed certificate that is larger by as much padding.
func identity(padding int) (tls.Certificate, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return tls.Certificate{}, err
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1),
		Subject:      pkix.Name{CommonName: "quicgo"},
		NotBefore:    time.Unix(0, 0),
		NotAfter:     time.Now().Add(24 * time.Hour),
	}
	if padding > 0 {
		value, err := asn1.Marshal(make([]byte, padding))
		if err != nil {
			return tls.Certificate{}, err
		}
		template.ExtraExtensions = []pkix.Extension{
			{Id: asn1.ObjectIdentifier{1, 3, 6, 1, 4, 1, 99999, 1}, Value: value},
		}
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, err
}

func serve(conn *quic.Conn) {
	for {
		stream, err := conn.AcceptStream(context.Background())
		if err != nil {
			return
		}
		go func() {
			if _, err := io.Copy(stream, stream); err == nil {
				stream.Close()
			}
		}()
	}
}

func (p *program) dial(c command) (result, error) {
	address, err := net.ResolveUDPAddr("udp4", c.Address)
	if err != nil {
		return nil, err
	}
	socket, err := open("127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	settings := &tls.Config{
		// As in the tests of our own ends: it is not the certificate that is tested.
		InsecureSkipVerify: true,
		NextProtos:         protocol(c),
		ServerName:         "interop",
		ClientSessionCache: p.sessions,
	}
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	dial, early := quic.Dial, quic.DialEarly
	if c.CID > 0 {
		transport := &quic.Transport{Conn: socket, ConnectionIDLength: c.CID}
		dial = func(ctx context.Context, _ net.PacketConn, a net.Addr, t *tls.Config, q *quic.Config) (*quic.Conn, error) {
			return transport.Dial(ctx, a, t, q)
		}
		early = func(ctx context.Context, _ net.PacketConn, a net.Addr, t *tls.Config, q *quic.Config) (*quic.Conn, error) {
			return transport.DialEarly(ctx, a, t, q)
		}
	}
	if c.Early {
		dial = early
	}
	how := config(c)
	how.TokenStore = p.tokens
	conn, err := dial(ctx, socket, address, settings, how)
	if err != nil {
		return nil, err
	}
	rejected := false
	if c.Early {
		if conn, rejected, err = sayEarly(ctx, conn); err != nil {
			return nil, err
		}
	}
	found := state(conn)
	found["rejected"] = rejected
	found["conn"] = p.keep(conn)
	go serve(conn)
	return found, nil
}

// sayEarly sends before the handshake, if a ticket allows that. It returns the connection
// to go on with, and whether what was sent was rejected.
func sayEarly(ctx context.Context, conn *quic.Conn) (*quic.Conn, bool, error) {
	stream, err := conn.OpenStream()
	if err != nil {
		return nil, false, err
	}
	if _, err := stream.Write(make([]byte, 1000)); err != nil {
		return nil, false, err
	}
	stream.Close()
	_, err = io.ReadAll(stream)
	if err == nil || !errors.Is(err, quic.Err0RTTRejected) {
		return conn, false, err
	}
	next, err := conn.NextConnection(ctx)
	return next, true, err
}

// echoes runs that many streams at a time, each with as many bytes there and back.
func echoes(conn *quic.Conn, size, count int) error {
	failures := make(chan error, count)
	for number := range count {
		go func() { failures <- echo(conn, size, byte(number)) }()
	}
	var first error
	for range count {
		if err := <-failures; first == nil {
			first = err
		}
	}
	return first
}

func echo(conn *quic.Conn, size int, salt byte) error {
	ctx, cancel := context.WithTimeout(conn.Context(), patience)
	defer cancel()
	stream, err := conn.OpenStreamSync(ctx)
	if err != nil {
		return err
	}
	stream.SetDeadline(time.Now().Add(patience))
	body := make([]byte, size)
	for i := range body {
		body[i] = byte(i>>8)*31 + byte(i) + salt
	}
	written := make(chan error, 1)
	go func() {
		_, err := stream.Write(body)
		if err == nil {
			err = stream.Close()
		}
		written <- err
	}()
	back, err := io.ReadAll(stream)
	if err != nil {
		return err
	}
	if err := <-written; err != nil {
		return err
	}
	if string(back) != string(body) {
		return fmt.Errorf("%d bytes came back as %d others", len(body), len(back))
	}
	return nil
}

func state(conn *quic.Conn) result {
	now := conn.ConnectionState()
	return result{
		"suite":   now.TLS.CipherSuite,
		"resumed": now.TLS.DidResume,
		"early":   now.Used0RTT,
		"version": uint32(now.Version),
	}
}

// migrate goes on from another socket; it needs connection IDs.
func migrate(conn *quic.Conn, cid int) error {
	socket, err := open("127.0.0.1:0")
	if err != nil {
		return err
	}
	path, err := conn.AddPath(&quic.Transport{Conn: socket, ConnectionIDLength: cid})
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(conn.Context(), patience)
	defer cancel()
	if err := path.Probe(ctx); err != nil {
		return err
	}
	return path.Switch()
}

// describe says how a connection ended.
func describe(err error) result {
	var application *quic.ApplicationError
	var transport *quic.TransportError
	var reset *quic.StatelessResetError
	var version *quic.VersionNegotiationError
	var idle *quic.IdleTimeoutError
	switch {
	case errors.As(err, &application):
		return result{
			"kind": "application", "code": application.ErrorCode,
			"remote": application.Remote, "reason": application.ErrorMessage,
		}
	case errors.As(err, &transport):
		return result{
			"kind": "transport", "code": transport.ErrorCode,
			"remote": transport.Remote, "reason": transport.ErrorMessage,
		}
	case errors.As(err, &reset):
		return result{"kind": "reset"}
	case errors.As(err, &version):
		return result{"kind": "version"}
	case errors.As(err, &idle):
		return result{"kind": "idle"}
	}
	return result{"kind": "other", "reason": err.Error()}
}
