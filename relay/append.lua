#!lua name=relay_@HASH@
-- Compare and append (design.md 5). @HASH@ is the hash of this text, put in by relay/sink: two relays of different
-- versions share a server without touching each other's functions.
--
-- Writer key of a topic: a hash with owner (the relay's name), epoch (rises with every start), last (entry id), and in
-- a topic of books snapshot: the id of the last whole book, where a late reader begins.

-- relay_append: KEYS stream, writer key, ... ARGV owner, epoch, maxlen, retention ms, publish (0: no, 1: PUBLISH,
-- 2: SPUBLISH, in a cluster), then for each topic: id of the entry before, count, the ids, the bodies.
-- Gives only what went otherwise than well, one text each, led by the topic's number from 0:
--   FENCED <epoch>         a newer relay of this name writes here; nothing written
--   OWNED <name>           the topic belongs to another relay; nothing written
--   UNFENCED               no writer key, or an older epoch: Redis has lost data; nothing written
--   MISMATCH <last>        the last entry is another one; nothing written
--   PARTIAL <last> <error> stopped at an error, last is in
--   GONE                   written, but the stream had been deleted
--   UNPUBLISHED <error>    written, but not sent to subscribers
local SNAPSHOT = '{"type":"book_snapshot"'

local function append(keys, args)
  local pcall = redis.pcall
  local byte, sub = string.byte, string.sub
  local owner, epoch, maxlen = args[1], tonumber(args[2]), args[3]
  local retention, publish = tonumber(args[4]), args[5] ~= '0'
  local telling = args[5] == '2' and 'SPUBLISH' or 'PUBLISH'
  local notes = {}
  local at = 6
  for k = 1, #keys, 2 do
    local stream, writer = keys[k], keys[k + 1]
    local prev, count = args[at], tonumber(args[at + 1])
    local ids, bodies = at + 1, at + 1 + count
    at = bodies + count + 1
    local number = (k - 1) / 2
    local state = pcall('HMGET', writer, 'owner', 'epoch', 'last')
    local note
    if state.err then
      note = 'PARTIAL ' .. prev .. ' ' .. state.err
    elseif not state[1] or not state[2] or not state[3] then
      note = 'UNFENCED'
    elseif state[1] ~= owner then
      note = 'OWNED ' .. state[1]
    elseif tonumber(state[2]) > epoch then
      note = 'FENCED ' .. state[2]
    elseif tonumber(state[2]) < epoch then
      note = 'UNFENCED'
    elseif state[3] ~= prev then
      note = 'MISMATCH ' .. state[3]
    else
      local last = prev
      local snapshot
      local loud = publish
      for i = 1, count do
        local id, body = args[ids + i], args[bodies + i]
        local reply
        if i == 1 and prev ~= '0-0' then
          reply = pcall('XADD', stream, 'NOMKSTREAM', id, 'data', body)
          if not reply then
            notes[#notes + 1] = number .. ' GONE'
            reply = pcall('XADD', stream, id, 'data', body)
          end
        elseif i == count and maxlen ~= '0' then
          reply = pcall('XADD', stream, 'MAXLEN', '~', maxlen, id, 'data', body)
        else
          reply = pcall('XADD', stream, id, 'data', body)
        end
        if type(reply) == 'table' and reply.err then
          note = 'PARTIAL ' .. last .. ' ' .. reply.err
          break
        end
        last = id
        -- one look at the 14th byte (its underscore) spares the others the comparison
        if byte(body, 14) == 95 and sub(body, 1, #SNAPSHOT) == SNAPSHOT then
          snapshot = id
        end
        if loud then
          local heard = pcall(telling, stream, body)
          if type(heard) == 'table' and heard.err then
            loud = false
            notes[#notes + 1] = number .. ' UNPUBLISHED ' .. heard.err
          end
        end
      end
      if last ~= prev then
        if snapshot then
          redis.call('HSET', writer, 'last', last, 'snapshot', snapshot)
        else
          redis.call('HSET', writer, 'last', last)
        end
        if count == 1 and maxlen ~= '0' then
          pcall('XTRIM', stream, 'MAXLEN', '~', maxlen)
        end
        if retention > 0 then
          local ms = tonumber(string.match(last, '^%d+')) - retention
          if ms > 0 then
            pcall('XTRIM', stream, 'MINID', '~', string.format('%.0f', ms))
          end
        end
      end
    end
    if note then
      notes[#notes + 1] = number .. ' ' .. note
    end
  end
  return notes
end

-- relay_fence: KEYS epoch key, then stream, writer key, ... ARGV owner, epoch, names of relays whose topics may be taken.
-- In a cluster the epoch key lies in another slot than a topic's and comes in a call of its own.
-- Gives one text a topic:
--   OK <last> <top>   the topic is ours; last: last entry by the writer key, top: by the stream (0-0: none)
--   FENCED <epoch>    a newer relay of this name writes here
--   OWNED <name>      it belongs to another relay
--   ERROR <error>
local function fence(keys, args)
  local owner, epoch = args[1], tonumber(args[2])
  local may = {}
  for i = 3, #args do
    may[args[i]] = true
  end
  local led = #keys % 2
  if led == 1 and tonumber(redis.call('GET', keys[1]) or '0') < epoch then
    redis.call('SET', keys[1], args[2])
  end
  local notes = {}
  for k = 1 + led, #keys, 2 do
    local stream, writer = keys[k], keys[k + 1]
    local state = redis.pcall('HMGET', writer, 'owner', 'epoch', 'last')
    local note
    if state.err then
      note = 'ERROR ' .. state.err
    elseif state[1] and state[1] ~= owner and not may[state[1]] then
      note = 'OWNED ' .. state[1]
    elseif state[2] and tonumber(state[2]) > epoch and state[1] == owner then
      note = 'FENCED ' .. state[2]
    else
      local top = '0-0'
      local info = redis.pcall('XINFO', 'STREAM', stream)
      if info.err then
        if not string.find(info.err, 'no such key', 1, true) then
          note = 'ERROR ' .. info.err
        end
      else
        for i = 1, #info, 2 do
          if info[i] == 'last-generated-id' then
            top = info[i + 1]
          end
        end
      end
      if not note then
        local last = state[3] or top
        redis.call('HSET', writer, 'owner', owner, 'epoch', args[2], 'last', last)
        note = 'OK ' .. last .. ' ' .. top
      end
    end
    notes[#notes + 1] = note
  end
  return notes
end

-- relay_lease: KEYS lease key. ARGV value, milliseconds (0: give it up).
-- Gives 1 (held on), 2 (taken anew) or the value of who holds it.
local function lease(keys, args)
  local holder = redis.call('GET', keys[1])
  if holder and holder ~= args[1] then
    return holder
  end
  if args[2] == '0' then
    redis.call('DEL', keys[1])
    return 1
  end
  if holder then
    redis.call('PEXPIRE', keys[1], args[2])
    return 1
  end
  redis.call('SET', keys[1], args[1], 'PX', args[2])
  return 2
end

redis.register_function('relay_append_@HASH@', append)
redis.register_function('relay_fence_@HASH@', fence)
redis.register_function{function_name = 'relay_lease_@HASH@', callback = lease, flags = {'allow-oom'}}
