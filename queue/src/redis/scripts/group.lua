-- A stream of others, as one of its consumer groups sees it. KEYS[1] is the stream. ARGV: the group, how
-- many entries are counted at most, how many of them at once, and after how many bytes of them no more
-- are. Reads only. Answers {'none'} where there
-- is no stream, {'type', what} where the key is none, {'group'} where the stream has no such group, and else
-- {'seen', ready, in flight, entries read or -1, id of the first that is ready or '', time}.
local stream, group = KEYS[1], ARGV[1]
local most, page, heavy = tonumber(ARGV[2]), tonumber(ARGV[3]), tonumber(ARGV[4])

local kind = redis.call('TYPE', stream).ok
if kind == 'none' then return {'none'} end
if kind ~= 'stream' then return {'type', kind} end

local found
for _, flat in ipairs(redis.call('XINFO', 'GROUPS', stream)) do
  local fields = {}
  for nth = 1, #flat, 2 do fields[flat[nth]] = flat[nth + 1] end
  if fields.name == group then found = fields end
end
if not found then return {'group'} end

local last = found['last-delivered-id']
local function after(id, n) return redis.call('XRANGE', stream, '(' .. id, '+', 'COUNT', n) end

-- The server does not know the lag where entries were deleted, has known it wrongly, and before 7.4 counts
-- those that were trimmed away: what lies there counts.
local first, ready = after(last, 1)[1], 0
if first then
  local kept = redis.call('XLEN', stream)
  ready = math.min(found.lag or 0, kept)
  if ready < 1 and redis.call('XRANGE', stream, '-', '+', 'COUNT', 1)[1][1] == first[1] then
    ready = kept
  end
  if ready < 1 then
    local from, size = last, 0
    repeat
      local entries = after(from, page)
      ready = ready + #entries
      for _, entry in ipairs(entries) do
        from = entry[1]
        for _, word in ipairs(entry[2]) do size = size + #word end
      end
    until #entries < page or ready >= most or size >= heavy
  end
end

-- Who was made to begin at the beginning has read nothing yet, and the server does not say so.
local n_read = found['entries-read'] or (last == '0-0' and 0) or -1
local time = redis.call('TIME')
return {
  'seen', ready, found.pending, n_read, first and first[1] or '',
  time[1] * 1000 + math.floor(time[2] / 1000),
}
